"""Paths against many globs: as their expressions say, in bounded time."""

from __future__ import annotations

import re
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.glob_set import GlobSet
from services.indexer.search.globs import glob_to_regex, is_open

_GLOBS = st.lists(
    st.sampled_from(["a", "b", "/", "*", "**", "**/", "?", "\\*", "\\", ".", "\n"]), max_size=9
).map("".join)
_PATHS = st.text("ab/*.\n\\", max_size=12)


@given(st.lists(_GLOBS, max_size=4), st.lists(_PATHS, min_size=1, max_size=5))
def test_a_path_is_matched_as_the_expressions_of_the_globs_say(
    globs: list[str], paths: list[str]
) -> None:
    """Also by the automaton. Red when one of its steps takes more or less."""
    globs = [glob for glob in globs if not is_open(glob)]
    expressions = [re.compile(glob_to_regex(glob), re.DOTALL) for glob in globs]
    found = GlobSet(globs)

    for path in paths:
        expected = any(each.fullmatch(path) for each in expressions)
        assert found.matches(path) is expected, path
        with mock.patch.object(found, "_longest", -1):
            assert found.matches(path) is expected, path


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("**a" * 300 + "b", "a" * 4000, False),
        ("**a" * 300 + "b", "a" * 4000 + "b", True),
        ("**a" * 50 + "b", "a" * 40, False),
        ("*?" * 30 + "b", "a" * 59, False),
        ("a*" * 100 + "b", "x/" * 1000 + "a" * 250, False),
        ("**/a*/" * 200 + "*b", "aa/" * 1300 + "ab", True),
        ("*?" * 120, "x" * 255, True),
        ("*?" * 120, "x" * 119, False),
    ],
)
def test_no_glob_takes_for_ever(glob: str, path: str, *, matches: bool) -> None:
    """Red by its timeout when an expression tries all places of all wildcards."""
    assert GlobSet([glob, "*.py"]).matches(path) is matches


def test_an_empty_set_matches_nothing() -> None:
    assert not GlobSet([])
    assert not GlobSet([]).matches("")
