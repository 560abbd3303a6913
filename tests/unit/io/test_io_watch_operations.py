"""Each operation on a file system is told as the fewest events that tell it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.io.tree_changes import (
    FILES,
    append,
    checkout,
    exchange,
    move_in,
    recreate,
    rename_and_back,
    rename_twice,
    renamed,
    replace_by_file,
    replace_by_folder,
    replace_by_link,
    save_by_rename,
    save_like_emacs,
    save_like_vim,
    write_through_mapping,
)
from tests.unit.io.watching import PATIENT, applied, kinds, watch

if TYPE_CHECKING:
    from tests.unit.io.harness import MakeFiles

Operation = Callable[[Path], object]
NEW = ("created", "n.py")
GONE = ("removed", "a.py")
CHANGED = ("modified", "a.py")
MOVED = [("renamed", "d2/e/y.py", "d/e/y.py"), ("renamed", "d2/x.py", "d/x.py")]
CHECKED_OUT = [
    *(("created", f"p{n % 4}/q/{n}.py") for n in range(20)), CHANGED,
    ("removed", "d/e/y.py"), ("removed", "d/x.py"),
]  # fmt: skip
LEFT = [("removed", "d/e/y.py"), ("removed", "d/x.py")]
OPERATIONS: list[tuple[str, Operation, Sequence[tuple[str, ...]]]] = [
    ("create", lambda t: (t / "n.py").write_text("n"), [NEW]),
    ("create empty", lambda t: (t / "n.py").touch(), [NEW]),
    ("append", lambda t: append(t / "a.py"), [CHANGED]),
    ("truncate", lambda t: os.truncate(t / "a.py", 0), [CHANGED]),
    ("overwrite in place", lambda t: (t / "a.py").write_text("new"), [CHANGED]),
    ("write through a mapping", lambda t: write_through_mapping(t / "a.py"), [CHANGED]),
    ("delete", lambda t: (t / "a.py").unlink(), [GONE]),
    ("delete and recreate", lambda t: recreate(t / "a.py"), [CHANGED]),
    ("rename", lambda t: (t / "a.py").rename(t / "n.py"), [("renamed", "n.py", "a.py")]),
    ("rename into one", lambda t: (t / "a.py").rename(t / "d/n.py"), [renamed("a.py", "d/n.py")]),
    ("rename onto another", lambda t: (t / "a.py").rename(t / "b.py"), [renamed("a.py", "b.py")]),
    ("exchange", exchange, [CHANGED, ("modified", "b.py")]),
    ("rename to a skipped name", lambda t: (t / "a.py").rename(t / "a.png"), [GONE]),
    ("move out", lambda t: (t / "a.py").rename(t.parent / "o.py"), [GONE]),
    ("touch", lambda t: os.utime(t / "a.py", (1, 1)), []),
    ("chmod", lambda t: (t / "a.py").chmod(0o600), []),
    ("chmod of a folder", lambda t: (t / "d").chmod(0o700), []),
    ("grow beyond the limit", lambda t: append(t / "big.py", "#" * 200), [("removed", "big.py")]),
    ("secret", lambda t: (t / ".env").write_text("x"), []),
    ("special", lambda t: os.mkfifo(t / "pipe.py"), []),
    ("a name that is not UTF-8", lambda t: os.mknod(os.fsencode(t) + b"/\xff.py"), []),
    ("ignored folder", lambda t: (t / "node_modules/m").mkdir(parents=True), []),
    ("empty folder", lambda t: (t / "n/m").mkdir(parents=True), []),
    ("folder renamed", lambda t: (t / "d").rename(t / "d2"), MOVED),
    ("folder renamed twice and written to", rename_twice, [
        ("modified", "d3/x.py"), ("renamed", "d3/e/y.py", "d/e/y.py"),
        ("renamed", "d3/x.py", "d/x.py"),
    ]),
    ("folder renamed and back", rename_and_back, [
        ("modified", "d/e/y.py"), ("modified", "d/x.py"),
    ]),
    ("folder into another", lambda t: (t / "d/e").rename(t / "e"), [renamed("d/e/y.py", "e/y.py")]),
    ("folder to an ignored name", lambda t: (t / "d").rename(t / "node_modules"), LEFT),
    ("folder moved out", lambda t: (t / "d").rename(t.parent / "o"), LEFT),
    ("folder moved in", move_in, [("created", "in/deep/z.py")]),
    ("folder deleted", lambda t: shutil.rmtree(t / "d"), LEFT),
    ("folder becomes a repository", lambda t: (t / "d/.git").mkdir(), LEFT),
    ("saved like vim", lambda t: save_like_vim(t / "a.py"), [CHANGED]),
    ("saved like emacs", lambda t: save_like_emacs(t / "a.py"), [("created", "a.py~"), CHANGED]),
    ("saved like VS Code", lambda t: save_by_rename(t / "a.py"), [CHANGED]),
    ("checkout", checkout, CHECKED_OUT),
    ("link into the tree", lambda t: (t / "l.py").symlink_to("a.py"), []),
    ("link replaces a file", lambda t: replace_by_link(t / "a.py"), [GONE]),
    ("file instead of a folder", lambda t: replace_by_file(t / "d"), [("created", "d"), *LEFT]),
    ("folder instead of a file", lambda t: replace_by_folder(t / "a.py"), [GONE]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "events"), [row[1:] for row in OPERATIONS], ids=[row[0] for row in OPERATIONS]
)
def test_each_operation_is_told_as_the_fewest_events(
    make_files: MakeFiles, operation: Operation, events: Sequence[tuple[str, ...]]
) -> None:
    """Also: applied to the old listing, the events give what a scan finds."""
    top = make_files(FILES)
    with watch(top, options=PATIENT) as watched:
        before = watched.scan()
        operation(top)

        told = watched.events()

        after = watched.scan()
    assert kinds(told) == sorted(events)
    known = applied(told, before, after)
    assert known.keys() == after.keys()
