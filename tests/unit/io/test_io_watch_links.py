"""What a watch tells of files and links that it may not look at: nothing of them is gone."""

from __future__ import annotations

import ctypes
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.io.model import SymlinkPolicy
from tests.unit.io.harness import NOBODY, unprivileged
from tests.unit.io.watching import kinds, wait_for, watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from tests.unit.io.watching import Watched

_PR_SET_DUMPABLE = 4
FILES = {"t/a.py": "a", "out/o.py": "o", "out/f/p.py": "p", "near.py": "n"}
LINKS = {"t/l.py": "../out/o.py", "t/dir": "../out/f", "t/near.py": "../near.py"}


@contextmanager
def tree_of_nobody(files: Mapping[str, str], links: Mapping[str, str]) -> Iterator[Path]:
    """Yields a folder of a user who is not root, as whom the body runs."""
    with tempfile.TemporaryDirectory(prefix="lodestone-") as folder:
        top = Path(folder) / "root"
        for path, text in files.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_text(text)
        for path, target in links.items():
            (top / path).symlink_to(target)
        Path(folder).chmod(0o755)
        if os.geteuid() == 0:
            for place in (top, *top.rglob("*")):
                os.chown(place, NOBODY, -1, follow_symlinks=False)
        with unprivileged():
            # Who changed its user may look into its own /proc/self, as others may anyway.
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)
            yield top


@pytest.fixture
def top() -> Iterator[Path]:
    """A tree `t` with links out of it."""
    with tree_of_nobody(FILES, LINKS) as made:
        yield made


def watch_t(top: Path) -> AbstractContextManager[Watched]:
    return watch(top, SymlinkPolicy.WITHIN_ROOT, "t")


def events_with(watched: Watched, wanted: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Returns what is told until an event comes, without it."""
    told: list[tuple[str, ...]] = []

    def is_told() -> bool:
        told.extend(kinds(watched.events()))
        return wanted in told

    wait_for(is_told)
    return [event for event in told if event != wanted]


def look_at_links(top: Path, watched: Watched) -> list[tuple[str, ...]]:
    """Returns what is told by the next look at all links: of one of them it tells."""
    with (top / "near.py").open("a") as file:
        file.write("more")
    return events_with(watched, ("modified", "near.py"))


def test_links_whose_targets_may_not_be_looked_at_are_unknown_not_gone(top: Path) -> None:
    """Red when each refusal counts as a link that leads nowhere: its files are removed."""
    with watch_t(top) as watched:
        assert set(watched.scan()) == {"a.py", "l.py", "dir/p.py", "near.py"}
        (top / "out").chmod(0)
        assert look_at_links(top, watched) == []
        (top / "out").chmod(0o755)
        assert look_at_links(top, watched) == []
        (top / "out/o.py").unlink()

        assert watched.events_until(1) == [("removed", "l.py")]


def test_links_that_may_not_be_looked_at_are_unknown_to_a_walk_over_all(top: Path) -> None:
    """A second name of a file is found by a walk, which begins with no knowledge of links.

    Red when it forgets the links at which it may not look, or does not note that it could not: what
    became of them is never told then.
    """
    with watch_t(top) as watched:
        (top / "out").chmod(0)
        (top / "t/b.py").hardlink_to(top / "t/a.py")
        assert set(events_with(watched, ("created", "b.py"))) <= {("modified", "a.py")}
        (top / "out").chmod(0o755)
        (top / "out/o.py").unlink()

        assert set(events_with(watched, ("rescan", ""))) <= {("modified", "a.py")}


def test_a_link_that_may_not_be_looked_at_hides_nothing_beside_it(top: Path) -> None:
    """Red when the folder's listing fails as a whole."""
    (top / "new").mkdir()
    (top / "new/n.py").write_text("n")
    (top / "new/l.py").symlink_to("../../out/o.py")
    with watch_t(top) as watched:
        (top / "out").chmod(0)
        (top / "new").rename(top / "t/new")
        assert kinds(watched.events()) == [("created", "new/n.py")]
        (top / "out").chmod(0o755)

        assert events_with(watched, ("rescan", "")) == []


def test_files_that_may_be_listed_and_not_looked_at_are_not_gone(top: Path) -> None:
    """Red when a file whose status is refused counts as gone from its folder."""
    (top / "t/d").mkdir()
    (top / "t/d/x.py").write_text("x")
    (top / "t/d/.git").mkdir()
    with watch_t(top) as watched:
        (top / "t/d/.git").rmdir()
        assert kinds(watched.events()) == [("created", "d/x.py")]
        (top / "t/d").chmod(0o444)
        (top / "t/d").rename(top / "t/e")
        told = kinds(watched.events())
        (top / "t/e").chmod(0o755)

        assert told == [("renamed", "e/x.py", "d/x.py")]
