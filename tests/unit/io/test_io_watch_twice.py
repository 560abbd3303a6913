"""A folder to which two ways lead is watched once by the kernel, and told under both paths."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.unit.io.tree_changes import FILES, Monkey, append
from tests.unit.io.watching import Client, kinds, wait_for, watch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles


@pytest.fixture
def top(make_files: MakeFiles) -> Path:
    """A tree `t` with a link to a folder outside, and one to a folder within that."""
    top = make_files({"t/a.py": "a", "out/d/x.py": "x", "out/y.py": "y"})
    (top / "t/all").symlink_to("../out")
    (top / "t/part").symlink_to("../out/d")
    return top


def test_what_changes_in_a_folder_is_told_under_each_path_to_it(top: Path) -> None:
    """Red when a watch of the kernel has one folder: the path that was walked last alone."""
    with watch(top, directory="t") as watched:
        append(top / "out/d/x.py")
        assert kinds(watched.events()) == [("modified", "all/d/x.py"), ("modified", "part/x.py")]
        (top / "out/d/x.py").rename(top / "out/d/z.py")
        assert kinds(watched.events()) == [
            ("renamed", "all/d/z.py", "all/d/x.py"), ("renamed", "part/z.py", "part/x.py"),
        ]  # fmt: skip
        (top / "out/d/z.py").rename(top / "out/z.py")
        assert kinds(watched.events()) == [
            ("removed", "part/z.py"), ("renamed", "all/z.py", "all/d/z.py"),
        ]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_caller_knows_what_a_scan_finds_under_both_paths(
    make_files: MakeFiles, seed: int
) -> None:
    """Random changes where both ways meet, folders moved in and out among them.

    Links among the files lead out of the tree, so that they are looked at after a moment.
    """
    top = make_files({f"out/d/{path}": text for path, text in FILES.items()} | {"t/m.py": ""})
    (top / "t/all").symlink_to("../out")
    (top / "t/part").symlink_to("../out/d")
    monkey = Monkey(top / "out/d", seed)
    with watch(top, directory="t") as watched:
        client = Client(watched)

        def is_up_to_date() -> bool:
            client.catch_up()
            return client.known == watched.scan()

        for _ in range(12):
            for _ in range(monkey.random.randrange(1, 30)):
                monkey.act()
            wait_for(is_up_to_date, 5)


def test_a_folder_that_is_mounted_twice_is_told_under_both_paths(make_files: MakeFiles) -> None:
    top = make_files({"a/x.py": "x", "b/keep": ""})
    mounted = ["mount", "--bind", str(top / "a"), str(top / "b")]
    if subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    try:
        with watch(top) as watched:
            append(top / "a/x.py")
            assert kinds(watched.events()) == [("modified", "a/x.py"), ("modified", "b/x.py")]
    finally:
        subprocess.run(["umount", str(top / "b")], check=True)
