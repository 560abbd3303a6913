"""Paths of a scoped run, in any spelling that means a file of the tree, and no other."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from services.indexer.errors import PathOutsideTreeError
from services.indexer.scope import PathScope, normal_entries
from services.io.ignore import IgnoreRules
from services.runtime.errors import InvalidRequestError
from services.runtime.globs import escape_glob


def _takes(entries: list[str], path: str) -> bool:
    return PathScope(normal_entries(entries)).takes(path)


@pytest.mark.parametrize(
    ("entry", "path", "expected"),
    [
        ("src", "src", True),
        ("src", "src/a.py", True),
        ("src", "src/deep/a.py", True),
        ("src", "src_utils/a.py", False),
        ("src", "lib/src/a.py", False),
        ("src/", "src/a.py", True),
        ("./src//deep/", "src/deep/a.py", True),
        (".", "any/thing.py", True),
        ("*.py", "a.py", True),
        ("*.py", "deep/a.py", True),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/deep/a.py", False),
        ("src/**/*.py", "src/a.py", True),
        ("src/**", "src/deep/a.py", True),
        ("src/*/", "src/deep/a.py", True),
        ("src/?.py", "src/ab.py", False),
        (r"a\*.py", "a*.py", True),
        (r"a\*.py", "ab.py", False),
        (r"a\*?.py", "a*b.py", True),
        (r"a\*?.py", "axb.py", False),
        ("[a].py", "[a].py", True),
        ("[a].py", "a.py", False),
        ("a\nb*", "a\nb.py", True),
    ],
)
def test_an_entry_takes_what_it_names(entry: str, path: str, *, expected: bool) -> None:
    assert _takes([entry], path) is expected


@pytest.mark.parametrize("entry", ["/etc/passwd", "../x", "a/../../x", "..", "a/.."])
def test_what_leads_out_of_the_tree_is_refused(entry: str) -> None:
    with pytest.raises(PathOutsideTreeError):
        normal_entries([entry])


@pytest.mark.parametrize("entry", ["a\0b", "a\\"])
def test_what_is_no_path_is_refused(entry: str) -> None:
    with pytest.raises(InvalidRequestError):
        normal_entries([entry])


def test_a_scope_of_nothing_is_nothing() -> None:
    assert not PathScope(())
    assert not PathScope(()).takes("a.py")


def test_globs_are_told_to_nobody_and_names_in_the_syntax_of_ignore_files() -> None:
    assert PathScope(("a*", "b")).includes() == []
    assert PathScope((".",)).includes() == []
    assert PathScope(("b", "#a [x]!")).includes() == [r"/\#a\ \[x\]\!", "/b"]
    assert PathScope(map(str, range(257))).includes() == []


@given(st.text(alphabet="ab/*?\\[.é", min_size=1, max_size=12))
def test_an_escaped_path_takes_its_file_alone(name: str) -> None:
    parts = [part for part in name.split("/") if part not in {"", ".", ".."}]
    path = "/".join(parts)
    if not path:
        return
    scope = PathScope(normal_entries([escape_glob(path)]))

    assert scope.takes(path)
    assert not scope.takes(f"{path}x")
    assert not scope.takes(f"x{path}")


@given(st.text(alphabet="ab/*?\\[]!#. \t\r\né", min_size=1, max_size=12))
@example("notes\r")
@example("a\n")
def test_a_scan_for_a_named_file_takes_it_whatever_its_name(name: str) -> None:
    """Red when the pattern loses the end of the name: a scan for it finds nothing, as if gone."""
    assume(name.strip("/") == name and not {"", ".", ".."} & set(name.split("/")))
    (pattern,) = PathScope(normal_entries([escape_glob(name)])).includes()
    rules = IgnoreRules([pattern])
    assert rules.verdict(name.rpartition("/")[2], name, is_folder=False)
    assert rules.may_match_beneath(name)
