"""Odd names, odd places, and trees that change under a scan: each has its outcome."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from services.io.content import file_digest
from services.io.errors import ContentChangedError
from services.io.model import FileToParse, ParsedFile, ScannedFile, SkipReason, UnchangedFile
from services.io.parser.file import ParseLimits, parse_file
from services.io.scanner import BATCH_FILES, ScanRules, TreeScan
from tests.unit.io.harness import MakeFiles, held_paths, open_tree, unprivileged
from tests.unit.io.parsing import GRAMMARS
from tests.unit.io.scanning import NAMES, scan

if TYPE_CHECKING:
    from pathlib import Path

    from services.io.model import FileOutcome


def test_names_that_differ_in_case_alone_are_different_files(make_files: MakeFiles) -> None:
    top = make_files({"A/x.py": "", "a/x.py": "", "README": "", "Readme": "", "readme": ""})
    found, _, _ = scan(top)
    assert found == ["A/x.py", "README", "Readme", "a/x.py", "readme"]


def test_a_name_that_is_not_utf8_is_skipped_and_a_folder_of_such_a_name_not_walked(
    make_files: MakeFiles,
) -> None:
    top = make_files({"a.py": "", "é.py": ""})
    for name in (b"\xff/x.py", b"\xe9.py", b"\xed\xa0\x80.py"):
        place = top / os.fsdecode(name)
        place.parent.mkdir(exist_ok=True)
        place.touch()
    found, summary, _ = scan(top)
    assert found == ["a.py", "é.py"]
    assert summary.skipped == {SkipReason.NAME: 3}


def test_names_may_hold_line_ends_quotes_and_control_characters(make_files: MakeFiles) -> None:
    names = ["a\nb.py", "tab\t.py", '"q".py', "bell\a.py", " .py", "\\.py", "\u2028.py", "-rf"]
    found, _, _ = scan(make_files(dict.fromkeys(names, "x")))
    assert found == sorted(names)


def test_a_path_that_is_too_long_is_a_warning_and_its_neighbours_are_found(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    script = (
        "n=$(printf 'd%.0s' $(seq 250)); touch a.py; "
        "for i in $(seq 17); do mkdir $n && cd -P $n || exit 1; done; touch x.py; cd -P ../..; "
        "touch edge.py"
    )
    subprocess.run(["bash", "-c", script], cwd=top, check=True)
    found, summary, batches = scan(top)
    assert found == ["a.py", "/".join(["d" * 250] * 15) + "/edge.py"]
    assert summary.warnings == 1
    [warning] = batches[-1].warnings
    assert warning.is_directory


def test_a_hard_link_is_a_file_under_each_of_its_names(make_files: MakeFiles) -> None:
    top = make_files({"a.py": "x"})
    (top / "b.py").hardlink_to(top / "a.py")
    found, _, [batch] = scan(top)
    assert found == ["a.py", "b.py"]
    assert batch.files[0].inode == batch.files[1].inode


def test_submodules_and_nested_repositories_are_skipped_but_not_the_top(
    make_files: MakeFiles,
) -> None:
    top = make_files({
        ".git/HEAD": "x", "a.py": "", "submodule/.git": "gitdir: ../.git/modules/x",
        "submodule/b.py": "", "nested/.git/HEAD": "x", "nested/c.py": "", "plain/git": "",
    })  # fmt: skip
    (top / "worktree").mkdir()
    (top / "worktree" / ".git").symlink_to("../.git")
    found, summary, _ = scan(top)
    assert found == ["a.py", "plain/git"]
    assert summary.skipped == {SkipReason.VCS: 4}
    assert scan(top, directory="nested")[0] == ["c.py"]


def test_two_scans_of_a_tree_are_equal(make_files: MakeFiles) -> None:
    top = make_files({f"d{i % 7}/é{i}.py": "x" * i for i in range(300)})
    assert scan(top) == scan(top)


def test_a_large_folder_of_skipped_files_is_walked_in_pieces(make_files: MakeFiles) -> None:
    """Red when one step takes a whole folder: a cancelled scan would go on to its end."""
    top = make_files({f"f{i}.png": "" for i in range(BATCH_FILES * 3)})
    asked: list[int] = []

    def is_cancelled() -> bool:
        asked.append(1)
        return len(asked) == 3

    with open_tree(top) as tree:
        scanning = TreeScan(tree, ScanRules(1000, NAMES), is_cancelled)
        assert list(scanning.batches()) == []
    assert len(asked) == 3


def test_a_batch_has_a_limit_of_warnings_too(make_files: MakeFiles) -> None:
    """Red when files alone fill a batch: a tree of shut folders would make one huge message."""
    count = BATCH_FILES + 200
    top = make_files({"a.py": ""})
    for number in range(count):
        (top / f"shut{number}").mkdir(mode=0)
    with open_tree(top) as tree, unprivileged():
        batches = list(TreeScan(tree, ScanRules(1000, NAMES)).batches())
    assert [len(batch.warnings) for batch in batches] == [BATCH_FILES, 200]
    assert [len(batch.files) for batch in batches] == [1, 0]


@pytest.mark.parametrize("way", ["cancelled", "closed"])
def test_a_scan_that_is_left_half_way_holds_no_descriptor(make_files: MakeFiles, way: str) -> None:
    top = make_files({f"a/b/c/d{i}/f{j}.py": "" for i in range(30) for j in range(50)})
    is_cancelled = False
    with open_tree(top) as tree:
        batches = TreeScan(tree, ScanRules(1000, NAMES), lambda: is_cancelled).batches()
        first = next(batches)
        assert any(path.startswith(f"{top}/a/b/c") for path in held_paths())
        if way == "cancelled":
            is_cancelled = True
            assert list(batches) == []
        else:
            batches.close()  # type: ignore[attr-defined]
        assert not any(path.startswith(f"{top}/a") for path in held_paths())
    assert first.summary is None


def test_what_moves_while_a_scan_runs_costs_nothing_that_stays(make_files: MakeFiles) -> None:
    """Folders come, go and become files; none of it may raise, nor hide a file that stays."""
    stays = {f"stay{i}/f{j}.py": "" for i in range(20) for j in range(5)}
    top = make_files({**stays, "churn/a/x.py": "", "churn/b.py": ""})
    done = threading.Event()

    def churn() -> None:
        place = top / "churn"
        while not done.is_set():
            (place / "a").rename(place / "c")
            (place / "b.py").rename(place / "a")
            (place / "a").rename(place / "b.py")
            (place / "c").rename(top / "moved")
            (top / "moved").rename(place / "a")

    mover = threading.Thread(target=churn)
    mover.start()
    try:
        for _ in range(60):
            found, summary, _ = scan(top)
            assert set(stays) <= set(found)
            assert found == sorted(found)
            assert summary.files == len(found)
    finally:
        done.set()
        mover.join()


def scanned_file(top: Path, path: str) -> ScannedFile:
    _, _, batches = scan(top)
    return next(file for batch in batches for file in batch.files if file.path == path)


def parsed(top: Path, path: str, known: bytes = b"") -> FileOutcome:
    with open_tree(top) as tree:
        file = FileToParse(0, path, known)
        return parse_file(tree, file, ParseLimits(1000, 100, 256), GRAMMARS)


def test_an_edit_within_the_clock_tick_of_its_parse_is_noticed_by_the_next(
    make_files: MakeFiles,
) -> None:
    """What was read so soon is not settled, so an equal signature proves nothing and it is read.

    Red (`settled` is true) when the age of a file is not asked.
    """
    top = make_files({"a.py": "a = 1\n"})
    first = parsed(top, "a.py")
    assert isinstance(first, ParsedFile)
    assert not first.signature.settled
    assert first.signature[:4] == scanned_file(top, "a.py")[1:5]
    (top / "a.py").write_text("a = 2\n")
    second = parsed(top, "a.py", first.digest)
    assert isinstance(second, ParsedFile)
    assert second.digest != first.digest
    assert isinstance(parsed(top, "a.py", second.digest), UnchangedFile)


def test_an_edit_of_the_same_size_with_its_mtime_put_back_shows_in_the_next_scan(
    make_files: MakeFiles,
) -> None:
    """Red when a signature leaves out ctime, which nobody can put back."""
    top = make_files({"a.py": "a = 1\n"})
    before = scanned_file(top, "a.py")
    after = before
    for _ in range(10_000):
        (top / "a.py").write_text("a = 2\n")
        os.utime(top / "a.py", ns=(before.mtime_ns, before.mtime_ns))
        after = scanned_file(top, "a.py")
        if after.ctime_ns != before.ctime_ns:
            break
    assert (after.size, after.mtime_ns, after.inode) == (before[1], before[2], before[4])
    assert after != before


def test_a_file_that_is_written_while_it_is_parsed_fails_or_is_whole(make_files: MakeFiles) -> None:
    """A write empties the file and fills it again; no mix of versions may be parsed."""
    top = make_files({"a.py": ""})
    versions = [b"", b"a = 1\n" * 100, b"b = 1\n" * 100]
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for version in versions[1:]:
                (top / "a.py").write_bytes(version)

    writer = threading.Thread(target=write)
    writer.start()
    failed = 0
    try:
        for _ in range(300):
            try:
                outcome = parsed(top, "a.py")
            except ContentChangedError:
                failed += 1
                continue
            assert isinstance(outcome, ParsedFile)
            assert outcome.digest in {file_digest(version) for version in versions}
    finally:
        done.set()
        writer.join()
    assert failed < 300


_SCAN_IN_A_PROCESS = """
import resource, sys
from services.io import convert
from services.io.model import Root, SymlinkPolicy
from services.io.names import NameRules
from services.io.paths import Tree
from services.io.scanner import ScanRules, TreeScan

def scan(top):
    with Tree(Root("t", top, SymlinkPolicy.DENY)) as tree:
        batches = TreeScan(tree, ScanRules(1000, NameRules())).batches()
        return sum(len(convert.scan_message(batch).SerializeToString()) > 0 for batch in batches)

scan(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_of_a_scan_does_not_grow_with_the_tree(tmp_path: Path) -> None:
    """Ten times the files, in folders of a hundred: a list of them would be 8 MB and more."""
    for name, folders in (("small", 30), ("large", 300)):
        for number in range(folders):
            place = tmp_path / name / f"d{number % 10}" / f"e{number}"
            place.mkdir(parents=True)
            for index in range(100):
                (place / f"file_with_a_long_name_{index}.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", _SCAN_IN_A_PROCESS, tmp_path / "small", tmp_path / "large"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 2048, "KiB more for ten times the files"
