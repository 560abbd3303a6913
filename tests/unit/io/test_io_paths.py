"""No path leads out of its tree."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.io import paths
from services.io.beneath import open_by_component
from services.io.errors import (
    FileNotRegularError,
    FileUnreadableError,
    PathNotFoundError,
    PathOutsideTreeError,
)
from services.io.model import Root, SymlinkPolicy
from services.io.paths import MAX_NAME_BYTES, MAX_PATH_BYTES, Tree, check_path
from tests.unit.io.harness import MakeFiles, open_tree, unprivileged

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\0b",
           "\ud800", "x" * 256, "a/" * 2100 + "a"]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_path_is_refused(make_files: MakeFiles, path: str) -> None:
    with open_tree(make_files({"a/b": "x"})) as tree, pytest.raises(PathOutsideTreeError):
        tree.open_file(path)


@pytest.mark.parametrize("directory", ["/etc", "..", "a/../..", "a\0"])
def test_a_hostile_folder_is_refused(make_files: MakeFiles, directory: str) -> None:
    with pytest.raises(PathOutsideTreeError):
        open_tree(make_files({"a/b": "x"}), directory=directory)


def opens(tree: Tree, path: str) -> bytes:
    fd, _ = tree.open_file(path)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def test_links_are_followed_within_the_root_and_no_further(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"t/a": "a", "other/o": "o"})
    (tmp_path / "outside").write_text("secret")
    (top / "t/in").symlink_to("../other/o")
    (top / "t/out").symlink_to("../../outside")
    (top / "t/folder").symlink_to("../..")
    with open_tree(top, SymlinkPolicy.WITHIN_ROOT, "t") as tree:
        assert opens(tree, "in") == b"o"
        for path in ("out", "folder/outside"):
            with pytest.raises(PathOutsideTreeError):
                tree.open_file(path)
    with open_tree(top, SymlinkPolicy.DENY, "t") as tree:
        assert opens(tree, "a") == b"a"
        with pytest.raises(PathOutsideTreeError):
            tree.open_file("in")


def test_links_across_roots_are_followed_into_roots_alone(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"one/a": "a", "two/b": "b", "three/c": "c"})
    (top / "one/b").symlink_to(top / "two/b")
    (top / "one/c").symlink_to(top / "three/c")
    roots = [Root(n, str(top / n), SymlinkPolicy.ACROSS_ROOTS) for n in ("one", "two")]
    with Tree(roots[0], "", roots) as tree:
        assert opens(tree, "b") == b"b"
        with pytest.raises(PathOutsideTreeError):
            tree.open_file("c")


def test_beneath_the_root_of_the_file_system_links_stay_within_the_tree(
    make_files: MakeFiles,
) -> None:
    top = make_files({"t/a": "a", "out": "x"})
    (top / "t/in").symlink_to("a")
    (top / "t/up").symlink_to("../out")
    root = Root("local", "/", SymlinkPolicy.WITHIN_ROOT)
    with Tree(root, str(top / "t").lstrip("/")) as tree:
        assert opens(tree, "in") == b"a"
        with pytest.raises(PathOutsideTreeError):
            tree.open_file("up")


def test_what_is_no_regular_file_is_refused_without_waiting(make_files: MakeFiles) -> None:
    top = make_files({"a/b": "x"})
    os.mkfifo(top / "pipe")
    with open_tree(top) as tree:
        for path in ("pipe", "a"):
            with pytest.raises(FileNotRegularError):
                tree.open_file(path)
        with pytest.raises(PathNotFoundError):
            tree.open_file("none")
        with pytest.raises(PathNotFoundError):
            tree.open_file("a/b/c")


def test_an_unreadable_file_is_told(make_files: MakeFiles) -> None:
    top = make_files({"a": "x"})
    (top / "a").chmod(0)
    with open_tree(top) as tree, unprivileged(), pytest.raises(FileUnreadableError):
        tree.open_file("a")


def test_a_link_whose_target_is_exchanged_on_the_way_leads_nowhere(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red without a look at the file at the end: its place would be that of another one."""
    top = make_files({"target": "the file", "other": "another one"})
    (top / "link").symlink_to("target")
    asked = paths.real_path

    def exchanged_once_asked(fd: int) -> str:
        real = asked(fd)
        if real == str(top / "target"):
            (top / "other").rename(top / "target")
        return real

    with open_tree(top) as tree:
        folder_fd, name = tree.open_parent("link")
        os.close(folder_fd)
        assert name == "target"
        monkeypatch.setattr(paths, "real_path", exchanged_once_asked)
        with pytest.raises(PathOutsideTreeError):
            tree.open_parent("link")


def test_the_walk_for_old_kernels_follows_no_link(make_files: MakeFiles) -> None:
    top = make_files({"a/b": "x"})
    (top / "l").symlink_to("a")
    with open_tree(top) as tree:
        os.close(open_by_component(tree.fd, "a/b", os.O_RDONLY))
        for path in ("l/b", "a/../a/b"):
            with pytest.raises(OSError, match=r"."):
                open_by_component(tree.fd, path, os.O_RDONLY)


@pytest.mark.parametrize("path", ["..", "a/..", "../a", "a/../b"])
def test_the_walk_for_old_kernels_goes_up_by_no_part(make_files: MakeFiles, path: str) -> None:
    """Red when the last part alone is not looked at: `..` opens what lies above the tree."""
    top = make_files({"a/b": "x"})
    with open_tree(top) as tree, pytest.raises(OSError, match=str(errno.EXDEV)):
        open_by_component(tree.fd, path, os.O_RDONLY)


def is_path(path: str) -> bool:
    """What a path is, part by part."""
    try:
        parts = path.encode().split(b"/")
    except UnicodeEncodeError:
        return False
    return (
        "\0" not in path
        and len(path.encode()) <= MAX_PATH_BYTES
        and all(0 < len(part) <= MAX_NAME_BYTES and part not in {b".", b".."} for part in parts)
    )


@given(st.one_of(st.text("/.a", max_size=6), st.text("/a\0\u00e9\ud800"), st.text(max_size=300)))
@example("a/.")
@example("a/../a")
@example("..a/a.")
@example("a//a")
@example("a" * 255)
@example("a" * 256)
@example("a/" * 127 + "a")
@example("a/" * 2047 + "aa")
@example("a/" * 2048 + "a")
def test_a_path_is_taken_when_each_of_its_parts_is_a_name(path: str) -> None:
    """Red when the short way for plain paths lets a `.` pass at the start or after a `/`."""
    try:
        check_path(path)
    except PathOutsideTreeError:
        assert not is_path(path)
    else:
        assert is_path(path)
