"""What a scan finds, what it skips and in which order."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.io import names
from services.io.ignore import IgnoreRules
from services.io.model import SkipReason, SymlinkPolicy
from services.io.names import NameRules
from services.io.scanner import ScanRules, TreeScan
from tests.unit.io.harness import MakeFiles, open_tree, unprivileged
from tests.unit.io.scanning import NAMES, scan


@given(st.sets(st.text(st.sampled_from("a-.0é/"), min_size=1, max_size=6), max_size=12))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_come_in_byte_order_of_their_paths(tmp_path: Path, paths: set[str]) -> None:
    top = tmp_path / f"t{abs(hash(frozenset(paths)))}"
    for path in paths:
        parts = [f"n{part}" for part in path.split("/")]
        place = top.joinpath(*parts[:-1]).with_name(f"d{parts[0]}") / "x" / parts[-1]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("")
    top.mkdir(exist_ok=True)
    (top / "a").mkdir(exist_ok=True)
    (top / "a" / "z").write_text("")
    (top / "a.b").write_text("")
    (top / "a-b").write_text("")
    found, summary, _ = scan(top)
    raw = [path.encode() for path in found]
    assert raw == sorted(raw)
    assert raw[:3] == [b"a-b", b"a.b", b"a/z"]
    assert summary.files == len(found)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".env", SkipReason.SECRET), (".env.local", SkipReason.SECRET),
        ("id_rsa", SkipReason.SECRET),
        ("server.pem", SkipReason.SECRET), (".npmrc", SkipReason.SECRET),
        ("credentials.json", SkipReason.SECRET), ("x.KEY", SkipReason.SECRET),
        ("logo.png", SkipReason.BINARY), ("a.PYC", SkipReason.BINARY),
        ("x.woff2", SkipReason.BINARY),
        ("django.po", SkipReason.GENERATED), ("go.sum", SkipReason.GENERATED),
        ("jquery.min.js", SkipReason.GENERATED), ("package-lock.json", SkipReason.GENERATED),
        ("data.csv", SkipReason.GENERATED), ("x.gen.py", SkipReason.GENERATED),
        (".env.example", None), ("a.py", None), ("environment.py", None), ("keys.py", None),
        ("package.json", None), ("Makefile", None),
    ],
)  # fmt: skip
def test_a_name_tells_why_a_file_is_skipped(name: str, reason: SkipReason | None) -> None:
    assert NAMES.skip_reason(name) is reason


def test_verdicts_of_names_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree of a million names fills no memory, and what is not kept is judged all the same."""
    monkeypatch.setattr(names, "MAX_KNOWN_NAMES", 10)
    rules = NameRules()
    for _ in range(2):
        for number in range(30):
            assert rules.verdict(f"f{number}.py") == (None, "python")
            assert rules.verdict(f"{number}.pem")[0] is SkipReason.SECRET
    assert len(rules.known) == 10


def test_skips_are_counted_by_reason(make_files: MakeFiles) -> None:
    top = make_files({
        "a.py": "x", "big.py": "x" * 1001, ".env": "s", "x.png": b"\0", "y.po": "t",
        "node_modules/m.js": "x", ".git/config": "x", "inner/.git/config": "x", "inner/b.py": "x",
        "sub/.git": "gitdir: ../x", "sub/c.py": "x", ".gitignore": "*.tmp\n", "z.tmp": "x",
    })  # fmt: skip
    (top / "link.py").symlink_to("a.py")
    os.mkfifo(top / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(top / "sock"))
    Path(os.fsdecode(os.fsencode(top) + b"/\xff.py")).write_text("x")
    found, summary, _ = scan(top)
    assert found == [".gitignore", "a.py"]
    assert summary.skipped == {
        SkipReason.TOO_LARGE: 1, SkipReason.SECRET: 1, SkipReason.BINARY: 1,
        SkipReason.GENERATED: 1, SkipReason.IGNORED: 2, SkipReason.VCS: 3,
        SkipReason.SYMLINK: 1, SkipReason.SPECIAL: 2, SkipReason.NAME: 1,
    }  # fmt: skip


def test_the_request_takes_and_leaves_out_by_globs(make_files: MakeFiles) -> None:
    top = make_files(
        {"a.py": "", "src/b.py": "", "src/c.js": "", "src_x/d.py": "", "docs/e.md": ""}
    )
    only, _, _ = scan(top, include=IgnoreRules(["src/"]))
    without, _, _ = scan(top, exclude=IgnoreRules(["*.py", "!a.py"]))
    assert only == ["src/b.py", "src/c.js"]
    assert without == ["a.py", "docs/e.md", "src/c.js"]


def test_a_scan_for_named_files_walks_to_them_alone(make_files: MakeFiles) -> None:
    """Whoever watches scans for what changed: that costs what changed, not what the tree holds."""
    files = {f"d{i}/sub/f{j}.py": "" for i in range(20) for j in range(3)}
    top = make_files(files | {"d3/.gitignore": "f1.py\n", "a.py": ""})
    found, summary, _ = scan(top, include=IgnoreRules(["/d3/sub/f0.py", "/d3/sub/f1.py", "/a.py"]))
    beneath, in_folder, _ = scan(top, include=IgnoreRules(["/d4/sub"]))
    assert (found, summary.directories) == (["a.py", "d3/sub/f0.py"], 3)
    assert (len(beneath), in_folder.directories) == (3, 3)


def test_what_the_caller_leaves_out_goes_before_an_ignore_file(make_files: MakeFiles) -> None:
    top = make_files({"sub/.gitignore": "!a.py\n", "sub/a.py": ""})
    found, _, _ = scan(top, exclude=IgnoreRules(["a.py"]))
    assert found == ["sub/.gitignore"]


def test_a_thousand_files_make_a_batch(make_files: MakeFiles) -> None:
    top = make_files({f"d{i}/f{j}.py": "" for i in range(50) for j in range(50)})
    found, summary, batches = scan(top)
    assert len(found) == summary.files == 2500
    assert [len(batch.files) for batch in batches] == [1000, 1000, 500]
    assert all(batch.summary is None for batch in batches[:-1])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (SymlinkPolicy.DENY, ["a.py"]),
        (SymlinkPolicy.WITHIN_ROOT, ["a.py", "dir/o.py", "file.py"]),
    ],
)
def test_links_are_followed_as_the_policy_says(
    make_files: MakeFiles, tmp_path: Path, policy: SymlinkPolicy, expected: list[str]
) -> None:
    top = make_files({"t/a.py": "", "other/o.py": ""})
    (tmp_path / "outside.py").write_text("secret")
    for name, target in {
        "dir": "../other", "again": "../other", "file.py": "../other/o.py", "up": "..", "self": ".",
        "out.py": "../../outside.py", "abs.py": str(tmp_path / "outside.py"), "gone.py": "none",
    }.items():  # fmt: skip
        (top / "t" / name).symlink_to(target)
    (top / "t" / "again").unlink()
    found, summary, _ = scan(top, policy, "t")
    assert found == expected
    assert summary.skipped[SkipReason.SYMLINK] == 8 - len(expected)


def test_an_unreadable_folder_is_a_warning_and_the_scan_goes_on(make_files: MakeFiles) -> None:
    top = make_files({"a/x.py": "", "b/y.py": "", "c/z.py": ""})
    (top / "b").chmod(0)
    with open_tree(top) as tree, unprivileged():
        batches = list(TreeScan(tree, ScanRules(1000, NAMES)).batches())
    found = [file.path for batch in batches for file in batch.files]
    summary = batches[-1].summary
    assert summary is not None
    assert found == ["a/x.py", "c/z.py"]
    assert summary.warnings == 1
    [warning] = [w for batch in batches for w in batch.warnings]
    assert (warning.path, warning.is_directory) == ("b", True)


def test_a_folder_too_deep_is_a_warning(tmp_path: Path) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    script = "for i in $(seq 250); do mkdir d && cd d || exit 1; done; touch x.py"
    subprocess.run(["sh", "-c", script], cwd=top, check=True)
    found, summary, batches = scan(top)
    assert found == []
    assert summary.warnings == 1
    assert batches[-1].warnings[0].is_directory


def test_a_cancelled_scan_has_no_summary(make_files: MakeFiles) -> None:
    top = make_files({"a.py": ""})
    with open_tree(top) as tree:
        scanning = TreeScan(tree, ScanRules(1000, NAMES), lambda: True)
        assert list(scanning.batches()) == []


def test_large_text_without_grammar_is_skipped_as_too_large(tmp_path: Path) -> None:
    (tmp_path / "dump.json").write_text("1" * 300)
    (tmp_path / "small.json").write_text("1" * 200)
    (tmp_path / "long.py").write_text("#" * 300)
    paths, summary, _ = scan(tmp_path, max_plain_text_bytes=200)
    assert paths == ["long.py", "small.json"]
    assert summary.skipped[SkipReason.TOO_LARGE] == 1
