"""The fusion of the arms, the priors, and the globs of paths."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.model import Hit, NodeId, NodeKind
from services.indexer.search.globs import glob_to_regex
from services.indexer.search.ranking import Ranking, fuse, rank

_ARM = st.lists(st.integers(0, 20).map(NodeId), unique=True, max_size=12)


def _hit(
    node: int,
    *,
    path: str = "",
    name: str = "name",
    kind: NodeKind = NodeKind.FUNCTION,
    score: float = 1.0,
) -> Hit:
    return Hit(
        "tree", NodeId(node), path or f"{node}.py", b"", kind, name, "python", 0, 1, 1, 1, score
    )


@given(dense=_ARM, lexical=_ARM)
def test_each_node_that_an_arm_found_has_a_score(
    dense: list[NodeId], lexical: list[NodeId]
) -> None:
    scores = fuse(Ranking(), dense, lexical)

    assert scores.keys() == {*dense, *lexical}
    assert all(0 < score <= 2 / 61 for score in scores.values())


@given(dense=_ARM, lexical=_ARM)
def test_no_node_is_behind_one_that_both_arms_put_after_it(
    dense: list[NodeId], lexical: list[NodeId]
) -> None:
    scores = fuse(Ranking(), dense, lexical)

    for first in scores:
        for second in scores:
            ahead = [
                arm.index(first) < arm.index(second)
                for arm in (dense, lexical)
                if first in arm and second in arm
            ]
            both = all(first in arm and second in arm for arm in (dense, lexical))
            if both and ahead and all(ahead):
                assert scores[first] > scores[second]


@given(st.permutations([_hit(i, score=1 / (1 + i // 2)) for i in range(8)]))
def test_the_order_of_hits_does_not_depend_on_the_order_they_came_in(hits: list[Hit]) -> None:
    order = [hit.node_id for hit in rank(Ranking(), "x", hits)]

    assert order == list(range(8))


def test_a_definition_of_the_name_that_was_asked_for_comes_first() -> None:
    hits = [_hit(1, name="caller", score=1.2), _hit(2, name="Router.find", score=1.0)]

    assert [hit.node_id for hit in rank(Ranking(), "where is find", hits)] == [2, 1]


def test_a_definition_comes_before_a_window_of_text() -> None:
    hits = [_hit(1, kind=NodeKind.WINDOW), _hit(2)]

    assert [hit.node_id for hit in rank(Ranking(), "x", hits)] == [2, 1]


@pytest.mark.parametrize(("query", "first"), [("load config", 2), ("test of load config", 1)])
def test_tests_come_last_unless_they_are_asked_for(query: str, first: int) -> None:
    hits = [_hit(1, path="tests/a.py", score=1.1), _hit(2, path="src/a.py")]

    assert rank(Ranking(), query, hits)[0].node_id == first


def test_one_file_does_not_fill_the_first_page() -> None:
    hits = [_hit(i, path="same.py", score=1.0 - i / 1000) for i in range(5)]

    ordered = rank(Ranking(), "x", [*hits, _hit(9, score=0.9)])

    assert ordered[1].node_id == 9


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
