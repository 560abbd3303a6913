"""`lodestone search` on a real stack: what is searched, what became of hits, and odd arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services.runtime.exits import ExitCode
from tests.support.stack import lodestone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.stack import Finished, Lodestone

_ODD = "def odd_canary(value):\n    return value\n"
_PATHS = [
    "Makefile.py",
    "sub/Makefile.py",
    "src/a.py",
    "tools/src/b.py",
    "we*rd/c.py",
    "weird/d.py",
]


@pytest.fixture(scope="module")
def stack() -> Iterator[Lodestone]:
    """The product with nothing running."""
    yield from lodestone(EMBED_MODEL="hashing")


@pytest.fixture(scope="module")
def tree(stack: Lodestone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with names that look alike, indexed."""
    folder = tmp_path_factory.mktemp("odd")
    for path in _PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(_ODD, "utf-8")
    stack.index(folder)
    return folder


def _workspace(stack: Lodestone, tree: Path) -> str:
    """Name of the workspace of a tree."""
    known: list[dict[str, Any]] = stack.run("workspaces", "--json").json
    (name,) = [each["workspace"] for each in known if each["path"] == str(tree)]
    return str(name)


def _paths(done: Finished) -> set[str]:
    assert done.code == 0, done.stderr
    return {hit["path"] for hit in done.json}


@pytest.mark.parametrize("with_workspace", [False, True])
@pytest.mark.parametrize("path", ["Makefile.py", "src", "we*rd", "sub", "."])
def test_a_path_is_searched_and_no_other(
    stack: Lodestone, tree: Path, path: str, *, with_workspace: bool
) -> None:
    """Red when --workspace lets --path be forgotten, or the path is sent as a pattern."""
    named = ["--workspace", _workspace(stack, tree)] if with_workspace else []

    found = stack.run(
        "search", "odd_canary", "--path", str(tree / path), *named, "--json", "-k", "50"
    )

    beneath = {each for each in _PATHS if each == path or each.startswith(f"{path}/")}
    assert _paths(found) == (set(_PATHS) if path == "." else beneath)


def test_a_path_that_cannot_be_searched_is_refused(
    stack: Lodestone, tree: Path, tmp_path: Path
) -> None:
    """It says what to do; red when another tree, or all of the workspace, is searched instead."""
    name = _workspace(stack, tree)
    (tmp_path / "a file.py").write_text(_ODD, "utf-8")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused = {
        ("--path", str(tmp_path), "--workspace", name): f"does not lie in {tree}",
        ("--path", str(tmp_path)): f"`lodestone index {tmp_path}`",
        ("--path", str(tmp_path / "a file.py")): f"`lodestone index {tmp_path}`",
        ("--path", str(tree / "absent")): "no such file or folder",
        ("--path", str(tree / "absent"), "--workspace", name): "no such file or folder",
        ("--path", str(tmp_path / "loop")): "no such file or folder",
    }
    for arguments, words in refused.items():
        for command in ("search", "context", "graph"):
            done = stack.run(command, "odd_canary", *arguments)

            assert (done.code, done.stdout) == (ExitCode.USAGE, "")
            assert words in done.stderr
            assert "Traceback" not in done.stderr


def test_verify_tells_what_became_of_each_hit(stack: Lodestone, tmp_path: Path) -> None:
    """Red when --verify is not sent, or the text does not tell what moved where."""
    for name in ("fresh", "moved", "gone"):
        (tmp_path / f"{name}.py").write_text(
            f"def verify_canary_{name}():\n    return 1\n", "utf-8"
        )
    stack.index(tmp_path)
    moved = tmp_path / "moved.py"
    moved.write_text(f"import os\n\n\n{moved.read_text('utf-8')}", "utf-8")
    (tmp_path / "gone.py").unlink()
    asked = ("search", "verify_canary", "--path", str(tmp_path), "--kind", "function")

    hits = stack.run(*asked, "--verify", "--text", "none", "--json").json
    shown = stack.run(*asked, "--verify")
    unasked = stack.run(*asked, "--text", "none")

    told = {hit["path"]: (hit["freshness"], hit["start_line"], hit["end_line"]) for hit in hits}
    assert told == {
        "fresh.py": ("fresh", 1, 2),
        "moved.py": ("moved", 4, 5),
        "gone.py": ("gone", 1, 2),
    }
    heads = {line.partition(":")[0]: line for line in shown.stdout.splitlines() if ".py:" in line}
    assert heads["fresh.py"].endswith("(fresh)")
    assert heads["moved.py"].startswith("moved.py:4-5 ")
    assert heads["moved.py"].endswith("(moved to lines 4-5)")
    assert heads["gone.py"].endswith("(gone)")
    assert "     4 def verify_canary_moved():" in shown.stdout
    assert "(" not in unasked.stdout


def test_a_language_that_finds_nothing_is_told_with_those_that_do(
    stack: Lodestone, tree: Path
) -> None:
    asked = ("search", "odd_canary", "--path", str(tree))

    done = stack.run(*asked, "--lang", "py")
    as_json = stack.run(*asked, "--lang", "py", "--json")
    nowhere = stack.run(*asked, "--lang", "py", "--symbol", "absent")

    assert (done.code, done.stdout) == (ExitCode.OK, "Nothing was found.\n")
    assert "In other languages there are hits: python." in done.stderr
    assert as_json.json == []
    assert "other languages" not in nowhere.stderr


def test_a_run_is_named_by_its_id(stack: Lodestone, tmp_path: Path) -> None:
    """Of the workspace that is searched; red when only the whole name will do."""
    (tmp_path / "old.py").write_text("def run_canary_old():\n    return 1\n", "utf-8")
    stack.index(tmp_path)
    (tmp_path / "new.py").write_text("def run_canary_new():\n    return 2\n", "utf-8")
    stack.index(tmp_path)
    name = f"workspaces/{_workspace(stack, tmp_path)}"
    runs = [run["run"] for run in stack.run("runs", "--json").json if run["run"].startswith(name)]
    newest = runs[0]
    run_id = newest.rpartition("/")[2]

    for said in (newest, run_id, run_id[:8]):
        asked = ("run_canary", "--path", str(tmp_path), "--changed-since", said)
        assert _paths(stack.run("search", *asked, "--json")) == {"new.py"}
        context = stack.run("context", *asked, "--json").json
        assert {piece["path"] for piece in context["pieces"]} == {"new.py"}
    unknown = stack.run("search", "x", "--path", str(tmp_path), "--changed-since", "ffffffff-0")
    assert unknown.code == ExitCode.FAILED
    assert "no such run" in unknown.stderr
