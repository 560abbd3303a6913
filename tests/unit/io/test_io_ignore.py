"""Ignore files mean what git says they mean."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from services.io.ignore import MAX_IGNORE_FILE_BYTES, MAX_PATTERNS, IgnoreRules, glob_regex
from services.io.names import NameRules
from services.io.scanner import ScanRules, TreeScan
from tests.unit.io.harness import open_tree, unprivileged

if TYPE_CHECKING:
    from pathlib import Path

TREE = ["a.py", "b.txt", "src/a.py", "src/b.txt", "src/sub/a.py", "src/sub/deep/x.txt",
        "lib/a.txt", "lib/src/x.py", "a b.py", "x[1].py"]  # fmt: skip
PATTERNS = ["*.py", "!a.py", "/a.py", "src/", "src/sub", "/src/*", "!/src/sub/", "**/x.txt",
            "lib/**", "**/src", "a.*", "!*.txt", "?.py", "[ab].py", "[!a].txt", "src/**/x.txt",
            "sub/", "deep", "*", "!*/", "x\\[1\\].py", "a\\ b.py", "*.txt  ", "# c", "", "\\!x",
            "s**/x.txt", "[--b].[--q]y", "*.txt \r", "/src\r\r",
            "/*", "!/lib", "[a-", "s*/b.txt", "**", "sr[c]/**/a.py", "lib/*/x.py"]  # fmt: skip


def scanned(top: Path) -> list[str]:
    rules = ScanRules(1 << 20, NameRules())
    with open_tree(top) as tree:
        return [file.path for batch in TreeScan(tree, rules).batches() for file in batch.files]


def git_sees(top: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "-c", "core.quotepath=off", "-c", "core.excludesFile=", "ls-files", "-o",
         "--exclude-per-directory=.gitignore", "-z"],
        cwd=top, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    return sorted(name for name in listed.split("\0") if name)


def fill(top: Path, ignore_files: dict[str, list[str]]) -> None:
    for path in TREE:
        place = top / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("x")
    for folder, lines in ignore_files.items():
        (top / folder / ".gitignore").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(PATTERNS), max_size=5),
    st.lists(st.sampled_from(PATTERNS), max_size=4),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_scan_finds_the_files_that_git_does_not_ignore(
    tmp_path: Path, top_lines: list[str], nested_lines: list[str]
) -> None:
    top = tmp_path / "tree"
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir()
    subprocess.run(["git", "init", "-q", "--template=", "."], cwd=top, check=True)
    fill(top, {"": top_lines, "src": nested_lines})
    assert scanned(top) == git_sees(top)


def test_a_nested_ignore_file_can_take_back_what_its_parent_ignored(tmp_path: Path) -> None:
    fill(tmp_path, {"": ["*.txt"], "src": ["!b.txt"]})
    found = scanned(tmp_path)
    assert "src/b.txt" in found
    assert "b.txt" not in found


def test_a_file_beneath_an_ignored_folder_cannot_be_taken_back(tmp_path: Path) -> None:
    fill(tmp_path, {"": ["src/", "!src/a.py"]})
    assert "src/a.py" not in scanned(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_pattern(tmp_path: Path) -> None:
    """Editors of Windows write one, and git passes over it. Red where it is read as a letter."""
    subprocess.run(["git", "init", "-q", "--template=", "."], cwd=tmp_path, check=True)
    fill(tmp_path, {})
    (tmp_path / ".gitignore").write_bytes(b"\xef\xbb\xbflib\n*.txt\n")
    assert scanned(tmp_path) == git_sees(tmp_path) == [
        ".gitignore", "a b.py", "a.py", "src/a.py", "src/sub/a.py", "x[1].py",
    ]  # fmt: skip


def test_of_an_ignore_file_beyond_the_limits_whole_patterns_hold(tmp_path: Path) -> None:
    """Red where it is read to its end, and where the limit makes `*` of `*.log`."""
    fill(tmp_path, {})
    left = sorted({*TREE} - {"a.py", "src/a.py", "src/sub/a.py"})
    comment = "#".ljust(MAX_IGNORE_FILE_BYTES - len("a.py\n\n*"), "-")
    (tmp_path / ".gitignore").write_text(f"a.py\n{comment}\n*.log\n*.txt\n")
    assert scanned(tmp_path) == left
    many = ["a.py", *(f"x{number}" for number in range(MAX_PATTERNS - 1)), "*.txt"]
    (tmp_path / ".gitignore").write_text("\n".join(many))
    assert scanned(tmp_path) == sorted([*left, ".gitignore"])


def test_a_link_is_no_ignore_file(tmp_path: Path) -> None:
    """As in git. Red where it is followed, or told as one that cannot be read."""
    fill(tmp_path, {})
    (tmp_path / "rules.txt").write_text("*.py\n")
    (tmp_path / ".gitignore").symlink_to("rules.txt")
    with open_tree(tmp_path) as tree:
        batches = list(TreeScan(tree, ScanRules(1 << 20, NameRules())).batches())
    assert [file.path for batch in batches for file in batch.files] == sorted([*TREE, "rules.txt"])
    assert not [warning for batch in batches for warning in batch.warnings]


def test_an_ignore_file_that_may_not_be_read_is_a_warning(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    fill(top, {"src": ["*.py"]})
    (top / "src/.gitignore").chmod(0)
    with open_tree(top) as tree, unprivileged():
        batches = list(TreeScan(tree, ScanRules(1 << 20, NameRules())).batches())
    files = [file.path for batch in batches for file in batch.files]
    assert files == sorted([*TREE, "src/.gitignore"])
    warnings = [(w.path, w.is_directory) for batch in batches for w in batch.warnings]
    assert warnings == [("src/.gitignore", False)]


def test_later_kinds_of_ignore_files_go_first(tmp_path: Path) -> None:
    fill(tmp_path, {"": ["*.py"]})
    (tmp_path / ".lodestoneignore").write_text("!a.py\nlib/\n")
    found = scanned(tmp_path)
    assert "a.py" in found
    assert "lib/a.txt" not in found


@pytest.mark.parametrize(
    ("pattern", "path", "is_folder", "verdict"),
    [
        ("foo/**", "foo", True, None),
        ("foo/**", "foo/a/b", False, True),
        ("**/foo", "foo", False, True),
        ("a/**/b", "a/b", False, True),
        ("a/**/b", "a/x/y/b", False, True),
        ("a**b", "axxb", False, True),
        ("foo/", "foo", False, None),
        ("/foo", "x/foo", False, None),
        ("[[:digit:]]x", "1x", False, True),
        ("[]a]", "]", False, True),
        ("[z-a]", "z", False, True),
        ("[z-ab]", "b", False, True),
        ("[z-ab]", "a", False, None),
        ("[!--]", "-", False, None),
        ("[[--a]", "[", False, True),
        ("[+--a]", ",", False, True),
        ("[[:foo:]m]", "m]", False, None),
        ("x**/y", "xy", False, True),
        ("x**/y", "x/a/b/y", False, True),
        ("x*a**/y", "xaa/b/y", False, None),
        ("ab**/**", "ab/c", False, True),
        ("a\\\\  ", "a\\", False, True),
        ("a\\ ", "a ", False, True),
        ("a\\", "a", False, None),
        ("\\#x", "#x", False, True),
    ],
)
def test_patterns_match_as_in_git(
    pattern: str,
    path: str,
    is_folder: bool,  # noqa: FBT001 - a parameter of the table
    verdict: bool | None,  # noqa: FBT001 - a parameter of the table
) -> None:
    rules = IgnoreRules([pattern])
    assert rules.verdict(path.rpartition("/")[2], path, is_folder=is_folder) is verdict


@pytest.mark.timeout(20)
def test_a_hostile_ignore_file_cannot_hold_a_scan(tmp_path: Path) -> None:
    """Each star as `[^/]*` tries every way to share the name among them: red, it never ends.

    Red too when what stands before each star is looked at from the start of its line.
    """
    lines = [
        "a" * 100_000 + "*b" * 30_000,
        "*a" * 40 + "*b",
        "**/a*/" * 40 + "b",
        "[^/]" + "*a" * 60 + "?b",
        "**" * 50 + "b",
    ]
    place = tmp_path.joinpath(*["a" * 60] * 40)
    place.mkdir(parents=True)
    (place / ("a" * 250)).write_text("x")
    (tmp_path / ".gitignore").write_text("\n".join(lines))
    assert scanned(tmp_path)[1:] == [f"{'/'.join(['a' * 60] * 40)}/{'a' * 250}"]


@given(
    st.text(st.sampled_from("*?/ab[]!"), min_size=1, max_size=9),
    st.text(st.sampled_from("ab/"), min_size=1, max_size=9),
)
@settings(max_examples=300, deadline=None)
def test_what_a_filter_of_names_lets_through_is_all_that_may_match(glob: str, path: str) -> None:
    """The filter may say yes too often, never no too often."""
    pattern = glob_regex(glob.strip("/"))
    assume(pattern is not None and "//" not in path and path.strip("/") == path)
    assert pattern is not None
    rules = IgnoreRules([f"/{glob}"])
    if pattern.fullmatch(path) and bool(rules) and not glob.endswith("/"):
        assert rules.filter.may_match(path.rpartition("/")[2])


ANCHORED = ["/src/sub/a.py", "/lib/src", "/a b.py", "/src/s*/deep/", "/src/*", "/src/sub/deep",
            "/d\\[1\\]/sub\\ x/a.py", "/d\\[1\\]/*/a.py", "sr[c]/sub/", "lib/**"]  # fmt: skip


@given(
    st.lists(st.sampled_from(ANCHORED), min_size=1, max_size=2)
    | st.lists(st.sampled_from(PATTERNS)),
    st.sampled_from([*TREE, "d[1]/sub x/a.py"]),
)
def test_a_folder_that_holds_what_a_pattern_matches_is_never_passed_over(
    lines: list[str], path: str
) -> None:
    """Red on a planted bug: the last folder of a pattern's way was left out, as was an escape."""
    rules = IgnoreRules(lines)
    parts = path.split("/")
    folders = ["/".join(parts[:end]) for end in range(1, len(parts))]
    is_taken = rules.verdict(parts[-1], path, is_folder=False) or any(
        rules.verdict(folder.rpartition("/")[2], folder, is_folder=True) for folder in folders
    )
    assume(is_taken)

    first = next(
        (at for at, folder in enumerate(folders) if rules.verdict(
            folder.rpartition("/")[2], folder, is_folder=True)), len(folders)
    )  # fmt: skip
    assert all(map(rules.may_match_beneath, folders[: first + 1]))


@pytest.mark.parametrize(
    ("line", "walked"),
    [
        ("/src/sub/a.py", {"src", "src/sub"}),
        ("/src/sub/", {"src", "src/sub"}),
        ("/src/s*/x.txt", {"src", "src/sub", "src/sub/deep"}),
        ("/a\\ b/c.py", set()),
        ("a.py", {"src", "src/sub", "src/sub/deep", "lib", "lib/src"}),
        ("**/a.py", {"src", "src/sub", "src/sub/deep", "lib", "lib/src"}),
    ],
)
def test_folders_in_which_no_pattern_can_match_are_passed_over(line: str, walked: set[str]) -> None:
    rules = IgnoreRules([line])
    folders = ["src", "src/sub", "src/sub/deep", "lib", "lib/src"]
    assert {folder for folder in folders if rules.may_match_beneath(folder)} == walked
