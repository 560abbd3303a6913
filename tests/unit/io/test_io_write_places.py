"""A write lands beneath its root alone, on what may be written."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from services.io.changes import NewFile, WrittenFile
from services.io.errors import (
    FileNotRegularError,
    PathExistsError,
    PathNotFoundError,
    PathOutsideTreeError,
    ReadOnlyError,
)
from services.io.file_changes import make
from services.io.model import Root, SymlinkPolicy
from services.io.roots import Roots
from services.io.writer import WriteRules
from tests.unit.io.test_io_paths import HOSTILE
from tests.unit.io.writing import (
    failed,
    opened_writer,
    put_options,
    replacing,
    request,
    writable_root,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

    from services.io.changes import Change
    from tests.unit.io.harness import MakeFiles

_RENAME_EXCHANGE = 2  # from linux/fs.h


async def test_a_link_is_followed_as_the_policy_says_and_stays_a_link(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the rename goes to the name that the caller gave: the link becomes a file."""
    top = make_files({"t/x": "", "other/real": "old"})
    (tmp_path / "outside").write_text("secret")
    (top / "t/in").symlink_to("../other/real")
    (top / "t/out").symlink_to("../../outside")
    (top / "t/gone").symlink_to("nowhere")
    asked = [replacing("in", b"old", b"new"), replacing("out", b"secret", b"x"),
             replacing("gone", b"", b"")]  # fmt: skip

    for policy, errors in (
        (SymlinkPolicy.DENY, [PathOutsideTreeError] * 3),
        (SymlinkPolicy.WITHIN_ROOT, [None, PathOutsideTreeError, PathNotFoundError]),
    ):
        outcomes = await write(writable_root(top, policy), *asked, directory="t")
        for outcome, error in zip(outcomes, errors, strict=True):
            assert isinstance(outcome, error or WrittenFile)

    assert (top / "t/in").is_symlink()
    assert (top / "other/real").read_text() == "new"
    assert (tmp_path / "outside").read_text() == "secret"


async def test_a_link_into_a_read_only_root_is_not_written_through(make_files: MakeFiles) -> None:
    """Red when only the root that the caller names is asked."""
    top = make_files({"one/a": "", "two/b": "old", "two/sub/c": "old", "three/d": "old"})
    (top / "one/file").symlink_to(top / "two/b")
    (top / "one/folder").symlink_to(top / "two/sub")
    (top / "one/fine").symlink_to(top / "three/d")
    across = SymlinkPolicy.ACROSS_ROOTS
    roots = Roots([
        Root("test", str(top / "one"), across, read_only=False),
        Root("two", str(top / "two"), across, read_only=True),
        Root("three", str(top / "three"), across, read_only=False),
    ])  # fmt: skip

    outcomes = await write(
        roots, *(replacing(path, b"old", b"new") for path in ("file", "folder/c", "fine"))
    )

    assert [type(o) for o in outcomes] == [ReadOnlyError, ReadOnlyError, WrittenFile]
    assert (top / "two/b").read_text() == (top / "two/sub/c").read_text() == "old"
    assert (top / "three/d").read_text() == "new"


async def test_a_read_only_server_or_root_refuses_every_write(make_files: MakeFiles) -> None:
    top = make_files({"a": "old"})
    closed = Roots([Root("test", str(top), SymlinkPolicy.DENY, read_only=True)])
    for roots, rules in ((closed, None), (writable_root(top), WriteRules(100, read_only=True))):
        async with opened_writer(roots, rules=rules) as writer:
            with pytest.raises(ReadOnlyError):
                await writer.write(request(replacing("a", b"old", b"new")))


async def test_what_is_no_regular_file_is_refused_without_waiting(make_files: MakeFiles) -> None:
    top = make_files({"folder/x": ""})
    os.mkfifo(top / "pipe")
    outcomes = await write(
        top, replacing("pipe", b"", b""), replacing("folder", b"", b""),
        NewFile("folder", b"", overwrite=True), NewFile("folder", b""),
    )  # fmt: skip
    assert [type(o) for o in outcomes] == [FileNotRegularError] * 3 + [PathExistsError]


def outside_state(folder: Path, top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Returns what lies beside a tree: mode, inode and bytes of each."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if top in path.parents or path == top:
            continue
        status = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mode, status.st_ino, data)
    return found


@pytest.mark.parametrize("policy", list(SymlinkPolicy))
async def test_no_write_lands_outside_of_the_root(
    make_files: MakeFiles, tmp_path: Path, policy: SymlinkPolicy
) -> None:
    """Red when a path is joined and opened as it is, or a last link is followed by the kernel."""
    top = make_files({"d/f": "old"})
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "f").write_text("old")
    (outside / "sub/f").write_text("old")
    (top / "folder").symlink_to(outside)
    (top / "up").symlink_to("..")
    (top / "file").symlink_to(outside / "f")
    (top / "chain").symlink_to("file")
    (top / "proc").symlink_to("/proc/self/cwd")
    (top / "dangling").symlink_to(outside / "none")
    before = outside_state(tmp_path, top)
    paths = [*HOSTILE, "../outside/f", str(outside / "f"), "d/../../outside/f", "folder/f",
             "folder/sub/f", "folder/new", "folder/new/deep", "up/outside/f", "up/new", "file",
             "chain", "proc/new", "dangling", "d/f/x", "folder/../outside/f"]  # fmt: skip
    changes: list[Change] = [replacing(path, b"old", b"new") for path in paths]
    for overwrite in (False, True):
        for parents in (False, True):
            changes += [NewFile(path, b"new", overwrite, parents) for path in paths]

    outcomes = await write(writable_root(top, policy), *changes)

    assert not [
        c.path for c, o in zip(changes, outcomes, strict=True) if isinstance(o, WrittenFile)
    ]
    assert outside_state(tmp_path, top) == before


@pytest.mark.slow
def test_a_rename_race_lets_no_write_escape(make_files: MakeFiles, tmp_path: Path) -> None:
    """Red when the folder is opened by its joined path, or its name is used after it is open."""
    top = make_files({"d/f": "inside"})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("outside")
    (top / "l").symlink_to(outside)
    libc = ctypes.CDLL(None, use_errno=True)
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        first, second = str(top / "d").encode(), str(top / "l").encode()
        while not stop.is_set():
            assert libc.renameat2(-100, first, -100, second, _RENAME_EXCHANGE) == 0
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    options = put_options()
    ends: Counter[str] = Counter()
    try:
        with writable_root(top).open_tree("roots/test", "") as tree:
            until = time.monotonic() + 1
            while time.monotonic() < until:
                for change in (
                    NewFile("d/f", b"new", overwrite=True), NewFile("d/new/g", b"", True, True),
                ):  # fmt: skip
                    try:
                        make(tree, change, 100, options)
                        ends["written"] += 1
                    except PathOutsideTreeError:
                        ends["refused"] += 1
    finally:
        stop.set()
        thread.join()
    assert min(ends["written"], ends["refused"], swaps) > 10
    assert [path.name for path in outside.iterdir()] == ["f"]
    assert (outside / "f").read_text() == "outside"


async def test_a_folder_that_is_not_there_fails_the_call(make_files: MakeFiles) -> None:
    """Red when each file is told as missing: that looks like files that were removed."""
    top = make_files({"a": ""})
    with pytest.raises(PathNotFoundError) as raised:
        await write(top, replacing("a", b"", b"x"), directory="no/such")
    assert raised.value.metadata == {"path": "no/such"}


async def test_a_caller_cannot_name_a_temporary_file(make_files: MakeFiles) -> None:
    [outcome] = await write(make_files({"a": ""}), NewFile(f".lodestone-{'0' * 32}.tmp", b""))
    failed(outcome, PathOutsideTreeError)
