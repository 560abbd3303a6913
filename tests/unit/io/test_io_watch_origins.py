"""Only what a caller wrote is its echo: what others make of its files is told to it as well."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from services.io.changes import NewFile
from services.io.origins import Origins
from tests.unit.io.watching import watch
from tests.unit.io.writing import opened_writer, request, written

if TYPE_CHECKING:
    from pathlib import Path

    from services.io.watch.model import FileEvent
    from tests.unit.io.harness import MakeFiles

FILES = {"z.py": "z", "sub/s.py": "s"}


async def write_as_me(top: Path, origins: Origins, *names: str) -> None:
    async with opened_writer(top, origins=origins) as writer:
        changes = (NewFile(name, b"mine") for name in names)
        for outcome in await writer.write(request(*changes, origin_id="me")):
            written(outcome)


def by_another_process(top: Path, command: str) -> None:
    subprocess.run(["sh", "-c", command], cwd=top, check=True)


def origins_of(events: list[FileEvent]) -> dict[tuple[str, str], str]:
    return {(event.path, event.type.name.lower()): event.origin_id for event in events}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("mv a.py b.py", {("b.py", "renamed")}),
        ("ln a.py d.py", {("d.py", "created")}),
        ("mv a.py sub/a.py", {("sub/a.py", "renamed")}),
        ("mv a.py z.py", {("z.py", "renamed")}),
        ("mv sub away", {("away/s.py", "renamed"), ("away/m.py", "renamed")}),
    ],
)
async def test_what_others_make_of_a_written_file_is_no_echo(
    make_files: MakeFiles, command: str, told: set[tuple[str, str]]
) -> None:
    """Red when an origin is that of an inode: a rename and a second name leave it as it is."""
    top, origins = make_files(FILES), Origins()
    with watch(top, origins=origins) as watched:
        await write_as_me(top, origins, "a.py", "sub/m.py")
        assert set(origins_of(watched.events()).values()) == {"me"}

        by_another_process(top, command)
        heard = origins_of(watched.events())

    # Of the name under which it wrote the writer hears nothing new: the bytes are as it wrote them.
    heard.pop(("a.py", "modified"), None)
    assert heard == dict.fromkeys(told, "")


@pytest.mark.parametrize("name", ["a.py", "sub"])
async def test_a_written_file_that_went_and_came_back_is_no_echo(
    make_files: MakeFiles, name: str
) -> None:
    """Its writer was told that it is gone. Red when a place and a version are all that is asked."""
    top, origins = make_files(FILES), Origins()
    with watch(top, origins=origins) as watched:
        await write_as_me(top, origins, "a.py", "sub/m.py")
        watched.events()

        by_another_process(top, f"mv {name} ..")
        assert "removed" in {kind for _, kind in origins_of(watched.events())}
        by_another_process(top, f"mv ../{name} .")
        heard = origins_of(watched.events())

    assert "created" in {kind for _, kind in heard}
    assert set(heard.values()) == {""}


async def test_a_writer_hears_of_what_it_makes_where_a_file_was_removed_just_before(
    make_files: MakeFiles,
) -> None:
    """An echo too many: the file may as well be one that others brought back."""
    top, origins = make_files(FILES), Origins()
    with watch(top, origins=origins) as watched:
        by_another_process(top, "rm z.py")
        assert origins_of(watched.events()) == {("z.py", "removed"): ""}
        await write_as_me(top, origins, "z.py", "new.py")
        heard = origins_of(watched.events())

    assert heard == {("z.py", "created"): "", ("new.py", "created"): "me"}


async def test_a_written_file_that_was_away_for_a_moment_is_no_echo(make_files: MakeFiles) -> None:
    """Red when a file that was renamed and back within one message has its writer's origin."""
    top, origins = make_files(FILES), Origins()
    with watch(top, origins=origins) as watched:
        await write_as_me(top, origins, "a.py")
        watched.events()

        by_another_process(top, "mv a.py b.py && mv b.py a.py")
        heard = watched.events()

    assert heard
    assert {event.origin_id for event in heard} == {""}
