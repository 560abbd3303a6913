"""Roots come and go without a restart, and what was told outlasts one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.io.app import IoApp
from services.io.errors import FileError, PathOutsideTreeError, StateFolderError
from services.io.model import Root, SymlinkPolicy
from services.io.root_file import FILE_NAME, RootFile
from services.io.root_rules import RootRules
from services.io.roots import REFRESH_SECONDS, Roots, parse_roots
from services.io.settings import IoSettings
from services.runtime.errors import (
    AlreadyExistsError,
    ForbiddenError,
    InvalidRequestError,
    LodestoneError,
    NotFoundError,
    OverloadedError,
    StateConflictError,
)
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from pathlib import Path

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from services.io.root_file import RootFile
with RootFile(sys.argv[1]).locked():
    Path(sys.argv[1], "roots.json.new").write_bytes(b"half of a li")
    print("locked", flush=True)
    time.sleep(60)
"""


ENTRY = '{"id": "%s", "path": "%s", "symlink_policy": "%s", "read_only": true}'
DAMAGED = [
    b"", b"{", b"[]", b"null", b"\xff", b'{"version": 2, "roots": []}', b'{"version": 1}',
    *(
        f'{{"version": 1, "roots": [{ENTRY % fields}]}}'.encode()
        for fields in [("../x", "/y", "deny"), ("x", "y", "deny"), ("x", "/y", "all")]
    ),
]  # fmt: skip


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder in which roots may be added, with the folders `one` and `two` in it."""
    place = tmp_path / "place"
    for name in ("one", "two"):
        (place / name).mkdir(parents=True)
        (place / name / "file").write_text(name)
    return place


def replica(
    place: Path,
    *,
    clock: Clock | None = None,
    max_roots: int = 1000,
    lock_timeout_seconds: float = 60,
) -> Roots:
    """A server's roots over the state folder beside `place`."""
    fixed = Root("fixed", str(place / "one"), SymlinkPolicy.DENY)
    file = RootFile(str(place.parent / "state"), lock_timeout_seconds=lock_timeout_seconds)
    roots = Roots([fixed], RootRules((str(place),), max_roots), file, clock or Clock())
    roots.load()
    return roots


def new_root(place: Path, name: str = "added", folder: str = "two") -> Root:
    return Root(name, str(place / folder), SymlinkPolicy.WITHIN_ROOT)


def names(roots: Roots) -> list[str]:
    return [root.id for root in roots.page(1000, "")[0]]


def test_a_root_is_added_once_however_often_it_is_asked_for(place: Path) -> None:
    """Red when the second call is an error: a caller retries when an answer is lost."""
    roots = replica(place)

    assert roots.create(new_root(place)) == roots.create(new_root(place))

    assert names(roots) == ["added", "fixed"]
    with roots.open_tree("roots/added", "") as tree:
        os.close(tree.open_file("file")[0])


@pytest.mark.parametrize(
    "change", [{"symlink_policy": SymlinkPolicy.DENY}, {"read_only": False}, {"path": "/other"}]
)
def test_another_root_of_the_same_name_is_refused(place: Path, change: dict[str, object]) -> None:
    """Red when the id alone is compared: a caller would believe in a policy that is not there."""
    roots = replica(place)
    roots.create(new_root(place))
    other = replace(new_root(place), **change)  # type: ignore[arg-type]
    if other.path == "/other":
        other = replace(other, path=str(place / "one"))

    with pytest.raises(AlreadyExistsError):
        roots.create(other)
    with pytest.raises(AlreadyExistsError):
        roots.create(new_root(place, "fixed"))


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("one", InvalidRequestError),
        ("", InvalidRequestError),
        ("{place}/one\0", InvalidRequestError),
        ("/", InvalidRequestError),
        ("//", InvalidRequestError),
        ("/tmp/..", InvalidRequestError),
        ("{place}/none", FileError),
        ("{place}/one/file", FileError),
        ("{place}/" + "x" * 300, FileError),
        ("{place}/loop", LodestoneError),
        ("{place}/out", ForbiddenError),
        ("{place}/../other", ForbiddenError),
        ("{place}x", ForbiddenError),
        ("/etc", ForbiddenError),
        ("/no/such/folder", ForbiddenError),
    ],
)
def test_a_folder_that_may_not_be_a_root_is_refused(
    place: Path, path: str, error: type[Exception]
) -> None:
    """Red when the path is compared before its links are resolved, or `//` is not seen as `/`."""
    (place / "loop").symlink_to("loop")
    (place / "out").symlink_to("/etc")
    (place.parent / "placex").mkdir()
    roots = replica(place)

    with pytest.raises(error):
        roots.create(Root("new", path.format(place=place), SymlinkPolicy.DENY))

    assert names(roots) == ["fixed"]


def test_even_beneath_everything_the_whole_file_system_is_no_root(place: Path) -> None:
    """Red when `//` is compared with `/` as text: Python keeps two slashes at the start."""
    roots = Roots([], RootRules(("/",)))
    for path in ("/", "//", "///", "//tmp/.."):
        with pytest.raises(InvalidRequestError):
            roots.create(Root("all", path, SymlinkPolicy.DENY))
    assert parse_roots("all=//", SymlinkPolicy.DENY)[0].path == "/"


def test_links_in_the_folder_are_resolved_when_it_is_added(place: Path) -> None:
    (place / "link").symlink_to("two")
    assert replica(place).create(new_root(place, folder="link")).path == str(place / "two")


def test_no_root_is_changed_unless_a_folder_to_add_in_is_named(place: Path) -> None:
    """Default-deny: red when the rules are asked on creation alone."""
    roots = Roots([new_root(place)])
    with pytest.raises(ForbiddenError):
        roots.create(new_root(place, "other"))
    with pytest.raises(ForbiddenError):
        roots.delete("roots/added")


def test_roots_have_a_limit(place: Path) -> None:
    roots = replica(place, max_roots=2)
    roots.create(new_root(place))
    with pytest.raises(OverloadedError):
        roots.create(new_root(place, "third"))
    roots.create(new_root(place))  # it is there: no more room is needed
    roots.delete("roots/added")
    roots.create(new_root(place, "third"))


def test_a_removed_root_is_gone_and_its_files_stay(place: Path) -> None:
    """Calls in flight finish: a tree that is open stays so."""
    roots = replica(place)
    roots.create(new_root(place))
    with roots.open_tree("roots/added", "") as tree:
        roots.delete("roots/added")
        os.close(tree.open_file("file")[0])
    for method in (roots.get, roots.delete):
        with pytest.raises(NotFoundError):
            method("roots/added")
    assert (place / "two/file").exists()


def test_a_root_of_the_settings_is_not_removed(place: Path) -> None:
    roots = replica(place)
    with pytest.raises(StateConflictError):
        roots.delete("roots/fixed")
    assert names(roots) == ["fixed"]


def test_added_roots_outlast_a_restart_and_those_of_the_settings_go_first(place: Path) -> None:
    """Red when the file is written after the answer, or an added root hides a configured one."""
    roots = replica(place)
    added = replace(new_root(place), read_only=False, symlink_policy=SymlinkPolicy.ACROSS_ROOTS)
    roots.create(added)

    assert replica(place).get("roots/added") == added

    fixed = Root("added", str(place / "one"), SymlinkPolicy.DENY)
    again = Roots([fixed], RootRules((str(place),)), RootFile(str(place.parent / "state")))
    again.load()
    assert again.get("roots/added") == fixed


def test_other_replicas_know_an_added_root_at_once_and_a_removed_one_soon(place: Path) -> None:
    """Red when a hit never looks at the file: a removed root would be served for ever."""
    clock = Clock()
    one, other = replica(place), replica(place, clock=clock)
    one.create(new_root(place))
    assert other.get("roots/added") == new_root(place)
    one.delete("roots/added")
    clock.seconds += REFRESH_SECONDS
    with pytest.raises(NotFoundError):
        other.get("roots/added")


def test_a_list_that_was_just_written_is_read_again(place: Path) -> None:
    """Red when equal signatures are taken for equal lists.

    Within a tick of the clock a second list of the same length looks like the first, as inodes are
    used again.
    """
    replica(place).create(new_root(place))
    file = RootFile(str(place.parent / "state"))
    assert file.has_changed()
    file.read()
    assert file.has_changed()


def test_replicas_that_add_at_once_lose_nothing(place: Path) -> None:
    """Red without the lock: each would write back the list that it read."""
    replicas = [replica(place) for _ in range(4)]

    def add(number: int) -> None:
        for index in range(4):
            replicas[number].create(new_root(place, f"r{number}-{index}"))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sorted([*(f"r{n}-{i}" for n in range(4) for i in range(4)), "fixed"])
    assert [names(roots) for roots in (*replicas, replica(place))] == [expected] * 5


def test_a_killed_writer_holds_no_lock_and_leaves_no_half_list(place: Path) -> None:
    """Red with a lock file whose existence is the lock, or a list that is written in place."""
    roots = replica(place, lock_timeout_seconds=0.5)
    roots.create(new_root(place))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(place.parent / "state")], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StateFolderError):
            roots.create(new_root(place, "while-locked"))
        holder.kill()
        holder.wait()
    assert names(replica(place)) == ["added", "fixed"]
    roots.create(new_root(place, "after"))
    assert names(replica(place)) == ["added", "after", "fixed"]
    left = sorted(path.name for path in (place.parent / "state").iterdir())
    assert left == [FILE_NAME, f"{FILE_NAME}.lock"]


@pytest.mark.parametrize("name", [f"{FILE_NAME}.lock", f"{FILE_NAME}.new"])
def test_what_cannot_be_kept_is_not_told_as_done(place: Path, name: str) -> None:
    """Red when memory changes before the disk does."""
    roots = replica(place)
    obstacle = place.parent / "state" / name
    obstacle.mkdir(parents=True)
    with pytest.raises(StateFolderError) as raised:
        roots.create(new_root(place))
    assert str(place.parent) not in str(raised.value.metadata) + raised.value.message
    assert names(roots) == ["fixed"]


@pytest.mark.parametrize("content", DAMAGED)
async def test_a_damaged_list_stops_the_start_and_changes_nothing_later(
    place: Path, content: bytes
) -> None:
    """Red when a list that cannot be read is taken for an empty one."""
    roots = replica(place)
    roots.create(new_root(place))
    file = place.parent / "state" / FILE_NAME
    file.write_bytes(content)

    assert names(roots) == ["added", "fixed"]
    with pytest.raises(StateFolderError):
        roots.create(new_root(place, "more"))
    app = IoApp(IoSettings(state_dir=str(file.parent)))
    with pytest.raises(StartError) as raised:
        await app.start()
    await app.close()
    assert raised.value.code is ExitCode.DATA_FOLDER
    assert "LODESTONE_IO_STATE_DIR" in raised.value.message
    assert file.read_bytes() == content


def test_a_list_that_vanished_is_out_of_reach_and_not_empty(place: Path) -> None:
    """Red when a missing file is taken for an empty list: a mount that went would end all calls."""
    roots = replica(place)
    roots.create(new_root(place))
    (place.parent / "state" / FILE_NAME).unlink()
    assert names(roots) == ["added", "fixed"]
    roots.create(new_root(place, "more"))
    assert names(replica(place)) == ["added", "fixed", "more"]


def test_a_link_put_above_a_root_later_is_not_followed(place: Path) -> None:
    """Red with a plain open of the root's path: who may rename above chooses what is served."""
    roots = replica(place)
    roots.create(new_root(place))
    (place / "two").rename(place / "three")
    (place / "two").symlink_to(place / "one")
    with pytest.raises(PathOutsideTreeError):
        roots.open_tree("roots/added", "")
