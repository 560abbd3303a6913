"""Globs of paths as PostgreSQL reads them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.search.globs import glob_to_regex


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.py", "a.py", True),
        ("*.py", "deep/a.py", True),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/deep/a.py", False),
        ("src/**", "src/deep/a.py", True),
        ("src/**/a.py", "src/a.py", True),
        ("src/**/a.py", "src/x/y/a.py", True),
        ("src/", "src/a.py", True),
        ("src/", "src_utils/a.py", False),
        ("src", "src_utils/a.py", False),
        ("/a.py", "deep/a.py", False),
        ("?.py", "a.py", True),
        ("?.py", "ab.py", False),
        ("?.py", "/.py", False),
        ("a.py", "aXpy", False),
        ("a+b(c).py", "a+b(c).py", True),
        ("[x].py", "[x].py", True),
        ("[x].py", "x.py", False),
    ],
)
def test_globs_match_what_they_say(pattern: str, path: str, *, matches: bool) -> None:
    assert bool(re.search(glob_to_regex(pattern), path)) is matches


@given(st.text(alphabet=st.characters(exclude_characters="*?\0\n", exclude_categories=["Cs"])))
def test_a_pattern_without_signs_matches_itself_alone(name: str) -> None:
    if not name.strip("/"):
        return
    regex = glob_to_regex("/" + name.strip("/"))

    assert re.search(regex, name.strip("/"))
    assert not re.search(regex, name.strip("/") + "x")
