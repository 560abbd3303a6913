"""What is told of a watched tree, on a real file system."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from services.io.model import SymlinkPolicy
from services.io.watch.model import EventType
from tests.unit.io.harness import NOBODY, MakeFiles, unprivileged
from tests.unit.io.watching import QUICK, Client, applied, kinds, watch

_PR_SET_DUMPABLE = 4
FILES = {"a.py": "a", "b.py": "b", "d/x.py": "x", "d/e/y.py": "y", "big.py": "#" * 900}


def append(path: Path, text: str = "more") -> None:
    with path.open("a") as file:
        file.write(text)


def save_like_vim(path: Path) -> None:
    """Moves the file to a backup, writes it anew, removes the backup."""
    backup = path.with_name(path.name + "~")
    path.rename(backup)
    path.write_text("saved by vim")
    backup.unlink()


def save_like_emacs(path: Path) -> None:
    """Leaves a backup."""
    path.rename(path.with_name(path.name + "~"))
    path.write_text("saved by emacs")


def save_by_rename(path: Path) -> None:
    """Writes a new file beside it and renames that over it."""
    new = path.with_name("tmp-4913.py")
    with new.open("w") as file:
        file.write("saved")
        os.fsync(file.fileno())
    new.replace(path)


def write_through_mapping(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = ord("z")


def exchange(top: Path) -> None:
    (top / "a.py").rename(top / "t")
    (top / "b.py").rename(top / "a.py")
    (top / "t").rename(top / "b.py")


def recreate(path: Path) -> None:
    path.unlink()
    path.write_text("again")


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("b.py")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("f")


def renamed(old: str, new: str) -> tuple[str, ...]:
    return "renamed", new, old


def move_in(top: Path) -> None:
    outside = top.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "z.py").write_text("z")
    (outside / "skip.png").write_text("z")
    outside.rename(top / "in")


def checkout(top: Path) -> None:
    for number in range(20):
        place = top / f"p{number % 4}" / "q" / f"{number}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("new")
    shutil.rmtree(top / "d")
    recreate(top / "a.py")


def rename_twice(top: Path) -> None:
    (top / "d").rename(top / "d2")
    append(top / "d2" / "x.py")
    (top / "d2").rename(top / "d3")


def rename_and_back(top: Path) -> None:
    (top / "d").rename(top / "d2")
    (top / "d2").rename(top / "d")


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
    with watch(top) as watched:
        before = watched.scan()
        operation(top)

        told = watched.events()

        after = watched.scan()
    assert kinds(told) == sorted(events)
    known = applied(told, before, after)
    assert known.keys() == after.keys()


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


class Monkey:
    """Does anything to a tree that a person or a tool might do."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = random.Random(seed)

    def act(self) -> None:
        action = self.random.choice([
            self.write, self.write, self.write, self.append, self.append, self.remove, self.rename,
            self.rename, self.make_folder, self.remove_folder, self.rename_folder, self.save,
            self.move_out, self.move_in, self.link, self.junk,
        ])  # fmt: skip
        with suppress(OSError):  # a name is taken by a folder, a folder goes into itself
            action()

    def folder(self) -> Path:
        folders = [self.top, *(p for p in self.top.rglob("*") if p.is_dir() and not p.is_symlink())]
        return self.random.choice(folders)

    def file(self) -> Path:
        files = [p for p in self.top.rglob("?.py") if p.is_file() or p.is_symlink()]
        return self.random.choice(files) if files else self.name()

    def name(self) -> Path:
        return self.folder() / f"{self.random.choice('abcdef')}.py"

    def write(self) -> None:
        self.name().write_text("w" * self.random.randrange(1200))

    def append(self) -> None:
        append(self.file(), "a" * self.random.randrange(1, 300))

    def remove(self) -> None:
        self.file().unlink()

    def rename(self) -> None:
        self.file().rename(self.name())

    def save(self) -> None:
        self.random.choice([save_like_vim, save_like_emacs, save_by_rename])(self.file())

    def make_folder(self) -> None:
        (self.folder() / self.random.choice("xyz")).mkdir()

    def remove_folder(self) -> None:
        if (folder := self.folder()) != self.top:
            shutil.rmtree(folder)

    def rename_folder(self) -> None:
        if (folder := self.folder()) != self.top:
            folder.rename(self.folder() / self.random.choice(["x", "y", "z", "node_modules"]))

    def move_out(self) -> None:
        if (folder := self.folder()) != self.top:
            folder.rename(self.top.parent / f"out{self.random.randrange(3)}")

    def move_in(self) -> None:
        (self.top.parent / f"out{self.random.randrange(3)}").rename(
            self.folder() / self.random.choice("xyz")
        )

    def link(self) -> None:
        self.name().symlink_to("a.py")

    def junk(self) -> None:
        (self.folder() / "f.log").write_text("x")


@pytest.mark.parametrize("seed", range(6))
def test_events_applied_to_the_old_listing_give_what_a_scan_finds(
    make_files: MakeFiles, seed: int
) -> None:
    """Random changes told in one window, so that a rename must carry what was known of the file.

    Red when a rename forgets that the file changed on its way.
    """
    top = make_files(FILES)
    monkey = Monkey(top, seed)
    options = replace(QUICK, quiet_seconds=0.2, max_wait_seconds=20)
    with watch(top, options=options) as watched:
        known = watched.scan()
        for _ in range(4):
            for _ in range(40):
                monkey.act()
            told = watched.events()
            now = watched.scan()
            assert all(event.type is not EventType.RESCAN for event in told)
            known = applied(told, known, now)
            assert known == now


@pytest.mark.parametrize("seed", range(10, 18))
def test_a_caller_that_follows_events_knows_what_a_scan_finds(
    make_files: MakeFiles, seed: int
) -> None:
    """Random changes told in windows so short that they part what belongs together.

    Red when a folder that went takes the watches of one that took them over (`release` without the
    look at who has the watch); red on a busy machine when a file that went and came back is not
    told: the caller looked while it was away.
    """
    top = make_files(FILES)
    monkey = Monkey(top, seed)
    options = replace(QUICK, quiet_seconds=0.001 * (seed % 3 + 1), max_wait_seconds=0.002)
    with watch(top, options=options) as watched:
        client = Client(watched)
        for _ in range(20):
            for _ in range(monkey.random.randrange(1, 40)):
                monkey.act()
                client.take()
            client.catch_up()
            assert client.known == watched.scan()
        assert client.rescans == 0


def test_a_checkout_of_git_is_told_as_a_scan_finds_it(make_files: MakeFiles) -> None:
    """Two branches with the same paths, other paths, and a folder where the other has a file."""
    top = make_files(FILES)

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        subprocess.run(["git", "-C", str(top), *who, *arguments], check=True, capture_output=True)

    git("init", "-q", "-b", "one")
    git("add", ".")
    git("commit", "-qm", "one")
    git("checkout", "-qb", "two")
    shutil.rmtree(top / "d")
    (top / "d").write_text("a file now")
    for number in range(300):
        place = top / f"m{number % 17}" / f"{number}.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(str(number))
    (top / "a.py").write_text("other")
    git("add", "-A")
    git("commit", "-qm", "two")
    with watch(top) as watched:
        known = watched.scan()
        for branch in ("one", "two", "one"):
            git("checkout", "-q", branch)
            told = watched.events()
            known = applied(told, known, watched.scan())
            assert known == watched.scan()


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
