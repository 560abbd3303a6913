"""What a watch could not look at for want of rights is told once it can."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.io.model import SymlinkPolicy
from services.io.watch.model import EventType
from tests.unit.io.test_io_watch_links import tree_of_nobody
from tests.unit.io.tree_changes import append
from tests.unit.io.watching import QUICK, Client, wait_for, watch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles
    from tests.unit.io.watching import Watched


@pytest.fixture
def top() -> Iterator[Path]:
    """A tree `t` of the user that the body is, with a link out of it to a folder."""
    files = {"t/a.py": "a", "t/d/e/f/x.py": "x", "out/e/y.py": "y"}
    with tree_of_nobody(files, {"t/link": "../out"}) as made:
        yield made
        for folder in ("t/d", "out"):
            (made / folder).chmod(0o755)


def knows_all(watched: Watched, client: Client) -> None:
    """Waits until a caller knows what a scan finds."""

    def is_up_to_date() -> bool:
        client.catch_up()
        return client.known == watched.scan()

    wait_for(is_up_to_date, 5)


def test_a_folder_that_came_into_one_that_may_not_be_read_is_told_when_it_may(top: Path) -> None:
    """Red when a failed open is forgotten: what comes into the folder later is not told either."""
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t") as watched:
        client = Client(watched)
        (top / "t/d").chmod(0o300)
        (top / "t/d/new").mkdir()
        (top / "t/d/new/n.py").write_text("n")
        client.catch_up()
        assert "d/new/n.py" not in client.known
        (top / "t/d").chmod(0o755)
        knows_all(watched, client)
        append(top / "t/d/new/n.py")
        knows_all(watched, client)
        assert client.rescans == 1


@pytest.mark.parametrize(("folder", "inner"), [("t/d", "d/e/f/x.py"), ("out", "link/e/y.py")])
def test_folders_that_may_be_listed_and_not_entered_are_told_when_they_may(
    top: Path, folder: str, inner: str
) -> None:
    """Red as above: the rights of the folder above them change, and it was walked already."""
    (top / folder).chmod(0o444)
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t") as watched:
        client = Client(watched)
        assert inner not in client.known
        (top / folder).chmod(0o755)
        knows_all(watched, client)
        assert inner in client.known
        assert client.rescans == 1


def test_a_file_that_changed_where_nobody_could_look_is_told_again(top: Path) -> None:
    """Red when its event is the last word: the caller looked then, and was refused."""
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t") as watched:
        client = Client(watched)
        with (top / "t/d/e/f/x.py").open("a") as file:
            (top / "t/d").chmod(0)
            file.write("more")
        client.catch_up()
        (top / "t/d").chmod(0o755)
        knows_all(watched, client)
        assert client.rescans == 1


def test_an_ignore_file_that_may_be_read_now_is_a_rescan_and_holds(top: Path) -> None:
    """Red when a change of its rights is none of what it says: its patterns never hold."""
    (top / "t/.gitignore").write_text("x.py\n")
    (top / "t/.gitignore").chmod(0)
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t") as watched:
        client = Client(watched)
        assert "d/e/f/x.py" in client.known
        (top / "t/.gitignore").chmod(0o644)
        knows_all(watched, client)
        assert "d/e/f/x.py" not in client.known
        append(top / "t/d/e/f/x.py")
        assert watched.events()[-1].type is EventType.RESCAN
        assert watched.events() == []


def test_an_ignore_file_that_is_written_under_another_name_holds(make_files: MakeFiles) -> None:
    """Red when the look at files with several names tells it as any other file."""
    top = make_files({"t/a.py": "a", "t/b.py": "b", "rules": "a.py\n"})
    (top / "t/.gitignore").hardlink_to(top / "rules")
    with watch(top, directory="t") as watched:
        client = Client(watched)
        (top / "rules").write_text("b.py\n")
        knows_all(watched, client)
        assert client.rescans == 1
        assert {"a.py", ".gitignore"} <= set(client.known)


@pytest.mark.parametrize("mode", [0, 0o444])
def test_a_walk_on_the_way_leaves_what_nobody_could_look_at_to_be_told(
    top: Path, mode: int
) -> None:
    """A file gets a second name as the folder opens, and that is looked for in the whole tree.

    Red when the walk takes what it can look at again for known: the caller was refused.
    """
    options = replace(QUICK, check_seconds=0.5)
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t", options) as watched:
        client = Client(watched)
        with (top / "t/d/e/f/x.py").open("a") as file:
            (top / "t/d/e/f").chmod(mode)
            file.write("more")
        client.catch_up()
        (top / "t/.gitignore").write_text("z.py\n")
        client.catch_up()
        (top / "t/d/e/f").chmod(0o755)
        (top / "t/b.py").hardlink_to(top / "t/a.py")
        knows_all(watched, client)


def test_a_file_whose_rights_change_as_it_can_be_looked_at_again_is_told(top: Path) -> None:
    """Red when the look that its own event asks for takes what nobody knew for known."""
    options = replace(QUICK, check_seconds=0.5)
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t", options) as watched:
        (top / "t/d/e/f").chmod(0o444)
        (top / "t/d/.gitignore").write_text("z.py\n")
        watched.events()
        client = Client(watched)
        assert "d/e/f/x.py" not in client.known
        (top / "t/d/e/f").chmod(0o755)
        (top / "t/d/e/f/x.py").chmod(0o600)
        knows_all(watched, client)
