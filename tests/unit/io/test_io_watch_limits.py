"""A watch that is at the limit of open files says that it may have missed something."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.io.model import SymlinkPolicy
from services.io.paths import Tree
from services.io.watch import listing, settle, translate
from services.io.watch.folders import split
from tests.unit.io.tree_changes import append
from tests.unit.io.watching import QUICK, Client, kinds, wait_for, watch

if TYPE_CHECKING:
    from tests.unit.io.harness import MakeFiles
    from tests.unit.io.watching import Watched

SOON = replace(QUICK, rescan_seconds=0.2)


class Limit:
    """Has a function fail once as at the limit of open files, in the thread that watches alone.

    It fails when it is called with what is `wanted`, the first time or `after` some calls.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, wanted: object, after: int = 0
    ) -> None:
        self.was_met = threading.Event()
        self._left = after
        self._call = getattr(owner, name)
        self._wanted = wanted
        patch.setattr(owner, name, self)

    def __get__(self, owner: object, _: object) -> Any:
        return (lambda *args, **named: self(owner, *args, **named)) if owner else self

    def __call__(self, *args: Any, **named: Any) -> Any:
        is_watch = threading.current_thread().name == "io-watch"
        is_wanted = self._wanted in (None, *args, *(split(a)[1] for a in args if type(a) is str))
        if is_watch and is_wanted:
            self._left -= 1
            if self._left == -1:
                self.was_met.set()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._call(*args, **named)


def hears_all(watched: Watched, client: Client) -> None:
    """Waits until a caller knows what a scan finds."""
    wait_for(lambda: client.take() is not None and client.known == watched.scan(), 5)


def test_a_folder_that_comes_at_the_limit_is_told_by_a_rescan(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else changes. Red when each failed open is taken for a folder that went already."""
    top = make_files({"a.py": "a"})
    with watch(top, options=SOON) as watched:
        client = Client(watched)
        limit = Limit(monkeypatch, translate, "open_folder", None)
        (top / "new").mkdir()
        (top / "new/n.py").write_text("n")
        assert limit.was_met.wait(5)
        hears_all(watched, client)
        (top / "new/m.py").write_text("m")
        hears_all(watched, client)
        assert client.rescans == 1


@pytest.mark.parametrize(
    "failing", [(settle, "open_folder", None, 0), (listing, "read_lines", ".gitignore", 1)]
)
def test_ignore_files_that_change_at_the_limit_are_heeded_later(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch, failing: tuple[Any, str, object, int]
) -> None:
    """Red when a folder, or an ignore file, that cannot be opened now is none for good."""
    top = make_files({"a.py": "a", "d/b.py": "b", "d/.gitignore": "c.py\n"})
    with watch(top, options=SOON) as watched:
        client = Client(watched)
        limit = Limit(monkeypatch, *failing)
        (top / "d/.gitignore").write_text("c.py\nb.py\n")
        assert limit.was_met.wait(5)
        hears_all(watched, client)
        watched.events()

        def is_a_change_told() -> bool:
            append(top / "d/b.py")
            return ("modified", "d/b.py") in kinds(watched.events())

        wait_for(lambda: not is_a_change_told(), 5)


@pytest.mark.parametrize("call", ["open_folder", "open_link"])
def test_what_lies_behind_a_link_is_not_removed_at_the_limit(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Red when a link that cannot be opened now leads to nothing."""
    top = make_files({"t/a.py": "a", "out/o.py": "o"})
    (top / "t/l.py").symlink_to("../out/o.py")
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t", SOON) as watched:
        client = Client(watched)
        assert "l.py" in client.known
        owner = settle if call == "open_folder" else Tree
        limit = Limit(monkeypatch, owner, call, None if call == "open_folder" else "l.py")
        assert limit.was_met.wait(5)
        wait_for(lambda: client.take() is not None and client.rescans)
        assert client.known == watched.scan()
        assert ("removed", "l.py") not in kinds(watched.events())


def test_a_link_that_comes_at_the_limit_is_told(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when a look at a link that fails tells that there is none."""
    top = make_files({"t/a.py": "a", "out/o.py": "o"})
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t", replace(SOON, check_seconds=60)) as watched:
        client = Client(watched)
        limit = Limit(monkeypatch, Tree, "open_link", "l.py")
        (top / "t/l.py").symlink_to("../out/o.py")
        assert limit.was_met.wait(5)
        hears_all(watched, client)
        assert "l.py" in client.known
