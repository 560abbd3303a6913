"""Globs of paths as PostgreSQL reads them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.search.globs import glob_to_regex, globs_to_regex
from services.runtime.globs import escape_glob


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
        ("/src", "src", True),
        ("/src", "tools/src", False),
        ("/src/**", "tools/src/a.py", False),
        (r"we\*rd/**", "we*rd/a.py", True),
        (r"we\*rd/**", "weird/a.py", False),
        (r"a\?.py", "deep/a?.py", True),
        (r"a\?.py", "ab.py", False),
        (r"a\\*", r"a\b", True),
        (r"a\\*", "ab", False),
        (r"\a\b*", "abc", True),
        ("a\\\n*", "a\nb", True),
    ],
)
def test_globs_match_what_they_say(pattern: str, path: str, *, matches: bool) -> None:
    assert bool(re.search(glob_to_regex(pattern), path)) is matches


@given(st.text(alphabet=st.characters(exclude_characters="*?\\\0\n", exclude_categories=["Cs"])))
def test_a_pattern_without_signs_matches_itself_alone(name: str) -> None:
    if not name.strip("/"):
        return
    regex = glob_to_regex("/" + name.strip("/"))

    assert re.search(regex, name.strip("/"))
    assert not re.search(regex, name.strip("/") + "x")


@given(st.text(alphabet="ab/*?\\[.^$é", min_size=1, max_size=12))
def test_an_escaped_path_matches_itself_alone(name: str) -> None:
    path = name.strip("/")
    if not path:
        return
    regex = glob_to_regex("/" + escape_glob(path))

    assert re.search(regex, path)
    for other in (f"{path}x", f"x{path}", f"x/{path}", f"{path}/x", *_with_signs_read(path)):
        assert not re.search(regex, other)


def _with_signs_read(path: str) -> list[str]:
    """Paths that a pattern of these characters would take if a sign stood for another."""
    return [path.replace(sign, "ab", 1) for sign in "*?[.\\" if sign in path]


@pytest.mark.parametrize(
    ("pattern", "shorter"),
    [
        ("**/" * 1300 + "x.py", "**/x.py"),
        ("**" * 2000, "**"),
        ("a/" + "**/**" * 600 + "b", "a/**b"),
        ("**/****/**/**", "**"),
    ],
)
def test_what_stands_again_in_a_pattern_is_read_once(pattern: str, shorter: str) -> None:
    """PostgreSQL takes minutes for an expression with some hundred optional folders in a row."""
    assert glob_to_regex(pattern) == glob_to_regex(shorter)


@given(
    st.lists(st.sampled_from(["**/", "**", "*", "a", "/", "?"]), min_size=1, max_size=8),
    st.lists(st.sampled_from("ab/"), max_size=6).map("".join),
)
def test_reading_once_changes_no_match(tokens: list[str], path: str) -> None:
    pattern = f"/{''.join(tokens)}"
    pieces = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    whole = f"{pattern}**" if pattern.endswith("/") else pattern
    every = "".join(pieces.get(each, each) for each in re.findall(r"\*\*/|\*\*|.", whole[1:]))

    assert bool(re.search(glob_to_regex(pattern), path)) is bool(re.fullmatch(every, path))


def test_patterns_are_one_expression_for_any_of_them() -> None:
    """PostgreSQL keeps 32 expressions: with one for each it read them anew for every row."""
    regex = globs_to_regex([f"src/p{number}/**" for number in range(40)] + ["*.py", "a|b"])

    for path in ("src/p39/x", "deep/a.py", "a|b"):
        assert re.search(regex, path)
    for path in ("src/p40/x", "a", "b", "x/src/p1/y"):
        assert not re.search(regex, path)
