"""What is told of a watched tree, on a real file system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.io.model import SymlinkPolicy
from services.io.watch.model import EventType
from tests.unit.io.harness import NOBODY, MakeFiles, unprivileged
from tests.unit.io.tree_changes import FILES, append, save_by_rename
from tests.unit.io.watching import QUICK, Client, applied, kinds, watch

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_DUMPABLE = 4
_AT_FDCWD, _EXCHANGE = -100, 2


def test_a_folder_that_is_written_to_while_it_comes_is_told_whole(make_files: MakeFiles) -> None:
    """Red when a new folder is listed and not watched."""
    top = make_files(FILES)
    with watch(top) as watched:
        for number in range(200):
            deep = top / f"n{number}" / "m" / "l"
            deep.mkdir(parents=True)
            (deep / "f.py").write_text("f")
            (deep.parent / "g.py").write_text("g")

        told = watched.events()

        assert applied(told, {}, watched.scan()).keys() == watched.scan().keys() - FILES.keys()


def test_what_comes_into_a_folder_while_it_is_listed_is_told(make_files: MakeFiles) -> None:
    """Another process makes folders and fills each at once.

    Red when a folder is watched after it was listed: files fall in between.
    """
    top = make_files(FILES)
    script = """
        d=0
        while [ $d -lt 200 ]; do
            mkdir n$d; i=0
            while [ $i -lt 30 ]; do : > n$d/$i.py; i=$((i + 1)); done
            d=$((d + 1))
        done"""
    with watch(top, options=replace(QUICK, quiet_seconds=0.001)) as watched:
        client = Client(watched)
        subprocess.run(["sh", "-c", script], cwd=top, check=True)
        client.catch_up()

        assert len(client.known) == 200 * 30 + len(FILES)


def test_what_lay_in_a_renamed_folder_and_went_meanwhile_is_told_as_removed(
    make_files: MakeFiles,
) -> None:
    """A walk of the new place does not see them: the old names are known, and held against it."""
    top = make_files(FILES)
    with watch(top) as watched:
        (top / "d").rename(top / "d2")
        (top / "d2/x.py").unlink()

        assert kinds(watched.events()) == [
            ("removed", "d/x.py"), ("renamed", "d2/e/y.py", "d/e/y.py"),
        ]  # fmt: skip


def test_changes_in_a_renamed_folder_are_told_under_its_new_path(make_files: MakeFiles) -> None:
    top = make_files(FILES)
    with watch(top) as watched:
        (top / "d").rename(top / "d2")
        watched.events()
        append(top / "d2/e/y.py")

        assert kinds(watched.events()) == [("modified", "d2/e/y.py")]


def test_a_folder_that_left_is_not_watched_any_more(make_files: MakeFiles) -> None:
    """Red when its watches stay: they follow it, and tell of files outside of the tree."""
    top = make_files(FILES)
    with watch(top) as watched:
        (top / "d").rename(top.parent / "o")
        watched.events()
        append(top.parent / "o/x.py")

        assert kinds(watched.events()) == []


@pytest.mark.parametrize("name", [".gitignore", "d/.ignore", ".lodestoneignore"])
def test_a_changed_ignore_file_is_a_rescan_and_holds_from_then_on(
    make_files: MakeFiles, name: str
) -> None:
    top = make_files(FILES)
    with watch(top) as watched:
        (top / name).write_text("e/\n")
        assert [event.type for event in watched.events()] == [EventType.RESCAN]
        append(top / "d/e/y.py")
        append(top / "d/x.py")

        assert kinds(watched.events()) == [("modified", "d/x.py")]


def test_an_ignore_file_that_says_the_same_is_no_rescan(make_files: MakeFiles) -> None:
    top = make_files(FILES | {".gitignore": "e/\n"})
    # A save is one change as long as no window ends within it, which takes time on a busy machine.
    with watch(top, options=replace(QUICK, quiet_seconds=0.3, max_wait_seconds=3.0)) as watched:
        save_by_rename(top / ".gitignore")
        assert [event.type for event in watched.events()] == [EventType.RESCAN]
        save_by_rename(top / ".gitignore")

        assert kinds(watched.events()) == [("modified", ".gitignore")]


def test_ignored_folders_and_nested_repositories_cost_no_watches(make_files: MakeFiles) -> None:
    """The system's watches are few. Red when a walk watches before it asks the rules."""
    ignored = {f"{top}/{n}/f.py": "" for top in ("node_modules", ".git", "out") for n in range(30)}
    top = make_files(FILES | {".gitignore": "out/\n", "r/.git/x": "", "r/s/f.py": ""} | ignored)
    with watch(top):
        count = sum(
            info.read_text().count("inotify wd")
            for info in Path("/proc/self/fdinfo").iterdir()
            if (Path("/proc/self/fd") / info.name).is_symlink()
        )

    assert count == 4, "the top, d, d/e, and r, which may cease to be a repository"


def test_a_repository_that_is_none_any_more_is_told(make_files: MakeFiles) -> None:
    top = make_files(FILES | {"r/.git": "gitdir: x", "r/s/f.py": ""})
    with watch(top) as watched:
        append(top / "r/s/f.py")
        assert kinds(watched.events()) == []
        (top / "r/.git").unlink()
        assert kinds(watched.events()) == [("created", "r/s/f.py")]
        append(top / "r/s/f.py")

        assert kinds(watched.events()) == [("modified", "r/s/f.py")]


@contextmanager
def own_proc() -> Iterator[None]:
    """Lets a process that changed its user look into its own /proc/self, as others may anyway."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)
    yield


@pytest.fixture
def open_top() -> Iterator[Path]:
    """A folder with files of the user that `unprivileged` is."""
    with tempfile.TemporaryDirectory(prefix="lodestone-") as folder:
        top = Path(folder) / "tree"
        (top / "d").mkdir(parents=True)
        (top / "a.py").write_text("a")
        (top / "d/x.py").write_text("x")
        Path(folder).chmod(0o755)
        for place in (top, *top.rglob("*")):
            os.chown(place, NOBODY if os.geteuid() == 0 else -1, -1)
        yield top


def test_a_folder_that_may_not_be_read_is_unknown_not_gone(open_top: Path) -> None:
    """Red when a folder that cannot be opened counts as gone: its files would be removed."""
    with (
        unprivileged(),
        own_proc(),
        watch(open_top) as watched,
        (open_top / "d/x.py").open("a") as file,
    ):
        (open_top / "d").chmod(0)
        file.write("more")
        file.flush()
        told = kinds(watched.events())
        (open_top / "d").chmod(0o755)

    assert told == [("modified", "d/x.py")]


def test_a_folder_that_may_be_read_now_is_told(open_top: Path) -> None:
    (open_top / "d").chmod(0)
    with unprivileged(), own_proc(), watch(open_top) as watched:
        assert set(watched.scan()) == {"a.py"}
        (open_top / "d").chmod(0o755)

        assert kinds(watched.events()) == [("created", "d/x.py")]


def test_a_write_under_one_name_of_a_file_is_told_of_all_its_names(make_files: MakeFiles) -> None:
    """The kernel tells of the name that was used alone. Red without a look at the others."""
    top = make_files(FILES)
    (top / "d/link.py").hardlink_to(top / "a.py")
    with watch(top) as watched:
        append(top / "a.py")

        told = watched.events_until(2)

    assert set(told) == {("modified", "a.py"), ("modified", "d/link.py")}


def test_a_file_that_gets_a_second_name_is_followed_under_both(make_files: MakeFiles) -> None:
    top = make_files(FILES)
    with watch(top) as watched:
        (top / "d/link.py").hardlink_to(top / "a.py")
        assert ("created", "d/link.py") in kinds(watched.events())
        append(top / "d/link.py")

        told = watched.events_until(2)

    assert set(told) == {("modified", "a.py"), ("modified", "d/link.py")}


def test_links_out_of_the_tree_are_followed_as_a_scan_does(make_files: MakeFiles) -> None:
    """Red without the regular look at links: no event comes from where they lead."""
    top = make_files({"t/a.py": "a", "other/o.py": "o", "other/sub/p.py": "p", "one.py": "1"})
    (top / "t/file.py").symlink_to("../one.py")
    (top / "t/dir").symlink_to("../other")
    with watch(top, directory="t") as watched:
        assert set(watched.scan()) == {"a.py", "dir/o.py", "dir/sub/p.py", "file.py"}
        append(top / "other/sub/p.py")
        assert kinds(watched.events()) == [("modified", "dir/sub/p.py")]
        append(top / "one.py")
        assert watched.events_until(1) == [("modified", "file.py")]
        (top / "t/dir").unlink()
        assert [event.type for event in watched.events()] == [EventType.RESCAN]
        append(top / "other/o.py")
        assert kinds(watched.events()) == []


def test_a_link_that_is_swapped_for_one_elsewhere_tells_nothing_of_there(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """T4: no policy lets a watch leave the root."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "canary.py").write_text("")
    top = make_files(FILES)
    for policy in SymlinkPolicy:
        with watch(top, policy) as watched:
            (top / "swapped").symlink_to(outside)
            (top / "file.py").symlink_to(outside / "deep" / "canary.py")
            told = watched.events()
            append(outside / "deep" / "canary.py")
            told += watched.events()
            (top / "swapped").unlink()
            (top / "file.py").unlink()
            told += watched.events()
        assert kinds(told) == []


def test_a_folder_with_too_many_files_is_told_as_a_rescan_when_renamed(
    make_files: MakeFiles,
) -> None:
    top = make_files({f"d/{number}.py": "" for number in range(30)})
    options = replace(QUICK, rename_files=20)
    with watch(top, options=options) as watched:
        (top / "d").rename(top / "e")
        assert [event.type for event in watched.events()] == [EventType.RESCAN]
        append(top / "e/3.py")

        assert kinds(watched.events()) == [("modified", "e/3.py")]


def test_a_file_that_came_and_went_is_told_where_one_was_told_before(make_files: MakeFiles) -> None:
    """Who looks for the first may find the second: red when it is told as nothing."""
    top = make_files(FILES)
    with watch(top, options=replace(QUICK, quiet_seconds=0.3, max_wait_seconds=3.0)) as watched:
        for path in ("known.py", "passing.py"):
            (top / path).write_text("")
            (top / path).unlink()
        assert kinds(watched.events()) == []
        (top / "known.py").write_text("")
        watched.events()
        (top / "known.py").unlink()
        watched.events()

        for path in ("known.py", "passing.py"):
            (top / path).write_text("")
            (top / path).unlink()

        assert kinds(watched.events()) == [("removed", "known.py")]


def test_a_watch_follows_the_link_to_a_folder_that_a_scan_does(make_files: MakeFiles) -> None:
    """Of two links to one folder the first is walked, in the order of paths: `a-b/`, then `a/`."""
    top = make_files({"tree/z.py": "", "out/x.py": ""})
    for name in ("a", "a-b"):
        (top / "tree" / name).symlink_to("../out")
    with watch(top, directory="tree") as watched:
        assert set(watched.scan()) == {"a-b/x.py", "z.py"}
        append(top / "out" / "x.py")
        assert kinds(watched.events()) == [("modified", "a-b/x.py")]


@pytest.mark.parametrize("way", ["second name", "repository"])
def test_a_walk_tells_what_changed_behind_links_since_the_last_look(
    make_files: MakeFiles, way: str
) -> None:
    """Red when a walk notes what links lead to now as known: no look at links tells it then."""
    top = make_files({"t/d/a.py": "a", "out/o.py": "o", "out/h.py": "h"})
    (top / "t/d/link.py").symlink_to("../../out/o.py")
    (top / "t/d/hard.py").hardlink_to(top / "out/h.py")
    with watch(top, directory="t", options=replace(QUICK, check_seconds=60)) as watched:
        append(top / "out/o.py")
        append(top / "out/h.py")
        if way == "second name":
            (top / "t/b.py").hardlink_to(top / "t/d/a.py")
        else:
            (top / "t/d/.git").mkdir()
            (top / "t/d/.git").rmdir()
        told = kinds(watched.events())
    assert {("modified", "d/link.py"), ("modified", "d/hard.py")} <= set(told)


def test_a_link_to_a_folder_is_followed_by_a_name_that_no_file_is_taken_of(
    make_files: MakeFiles,
) -> None:
    """A scan walks it: red when the name alone decides. A link to a file is none, nor a RESCAN."""
    top = make_files({"t/a.py": "a", "out/x.py": "x"})
    with watch(top, directory="t") as watched:
        client = Client(watched)
        (top / "t/lib.so").symlink_to("../out/x.py")
        (top / "t/plain.bin").write_text("b")
        client.catch_up()
        assert client.rescans == 0
        (top / "t/pkg.bin").symlink_to("../out")
        client.catch_up()
        assert client.known == watched.scan()
        assert client.known.keys() == {"a.py", "pkg.bin/x.py"}
        append(top / "out/x.py")
        client.catch_up()
        assert client.known == watched.scan()
        assert client.rescans == 1


@pytest.mark.parametrize("other", ["e", ".git"])
def test_folders_that_are_exchanged_are_told_and_watched_on(
    make_files: MakeFiles, other: str
) -> None:
    """Also with one that is not watched.

    Of the second the kernel tells that it left its name after the first came there. Red when
    whatever is known under the name by then is taken to have left.
    """
    top = make_files({"d/x.py": "x", "d/f/w.py": "w", f"{other}/y.py": "y", f"{other}/g/z.py": "z"})
    with watch(top) as watched:
        client = Client(watched)
        for ends in ("d", other), (other, "d"):
            one, two = (str(top / end).encode() for end in ends)
            assert ctypes.CDLL(None).renameat2(_AT_FDCWD, one, _AT_FDCWD, two, _EXCHANGE) == 0
            client.catch_up()
            assert client.known == watched.scan()
            for place in sorted(top.rglob("?.py")):
                append(place)
            client.catch_up()
            assert client.known == watched.scan()
        assert client.rescans == 0


def test_a_change_of_rights_hides_no_write_under_another_name(make_files: MakeFiles) -> None:
    """Red when the look that the change asks for takes the file for the one that was known."""
    top = make_files({"t/b.py": "b", "out/h.py": "h", "out/o.py": "o"})
    (top / "t/hard.py").hardlink_to(top / "out/h.py")
    (top / "t/link.py").symlink_to("../out/o.py")
    with watch(top, directory="t", options=replace(QUICK, check_seconds=60)) as watched:
        append(top / "out/h.py")
        append(top / "out/o.py")
        (top / "t/hard.py").chmod(0o600)
        os.utime(top / "t/link.py", ns=(0, 0), follow_symlinks=False)
        assert kinds(watched.events()) == [("modified", "hard.py"), ("modified", "link.py")]
