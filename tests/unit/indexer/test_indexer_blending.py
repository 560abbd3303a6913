"""The blend of a search's order with a reranker's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.model import NodeId, NodeKind
from services.indexer.search.blending import blended, rerank_places
from services.indexer.search.model import Hit

_SCORES = st.dictionaries(
    st.integers(0, 12).map(NodeId), st.floats(-30, 30, allow_nan=False), max_size=12
)
_SHARES = st.floats(0, 1)


def _hits(count: int) -> list[Hit]:
    """Returns hits with ids from 0, best first, each with a score of its own."""
    return [
        Hit("w", NodeId(at), "f.py", b"", NodeKind.FUNCTION, "f", "python", 0, 1, 1, 1, 9.0 - at)
        for at in range(count)
    ]


def _ids(hits: list[Hit]) -> list[int]:
    return [hit.node_id for hit in hits]


@given(st.integers(0, 9), _SCORES, _SHARES)
def test_hits_change_places_and_nothing_else(
    count: int, scores: dict[NodeId, float], share: float
) -> None:
    hits = _hits(count)

    found = blended(hits, scores, share, 60)

    assert sorted(_ids(found)) == _ids(hits)
    assert [hit.score for hit in found] == [hit.score for hit in hits]
    assert blended(hits, scores, share, 60) == found


@given(st.integers(0, 9), _SCORES)
def test_a_share_of_nothing_changes_nothing(count: int, scores: dict[NodeId, float]) -> None:
    assert blended(_hits(count), scores, 0.0, 60) == _hits(count)
    assert blended(_hits(count), {}, 1.0, 60) == _hits(count)


def test_a_share_of_all_is_the_rerankers_order_and_equal_scores_stay() -> None:
    scores = {NodeId(0): 0.1, NodeId(1): 0.7, NodeId(2): 0.1, NodeId(3): 0.9}

    assert _ids(blended(_hits(4), scores, 1.0, 60)) == [3, 1, 0, 2]
    assert rerank_places(_hits(4), scores) == {3: 1, 1: 2, 0: 3, 2: 4}


def test_both_orders_count_by_their_share() -> None:
    """Red when the blend adds places, or leaves out the constant of reciprocal ranks."""
    scores = {NodeId(0): -1.0, NodeId(1): 2.0, NodeId(2): 3.0}
    worth = {
        node: 0.3 / (60 + reranked) + 0.7 / (60 + place)
        for node, place, reranked in ((0, 1, 3), (1, 2, 2), (2, 3, 1))
    }

    expected = sorted(worth, key=lambda node: -worth[node])

    assert _ids(blended(_hits(3), scores, 0.3, 60)) == expected == [0, 1, 2]
    assert _ids(blended(_hits(3), scores, 0.8, 60)) == [2, 1, 0]
    assert _ids(blended(_hits(3), scores, 0.7, 60)) == [2, 1, 0]
    assert _ids(blended(_hits(3), scores, 0.7, 0)) == [2, 0, 1]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_hit_without_a_score_counts_by_its_place(share: float) -> None:
    scores = {NodeId(1): 5.0, NodeId(2): 7.0}

    assert _ids(blended(_hits(3), scores, share, 60))[0] in {0, 2}
    assert _ids(blended(_hits(3), {NodeId(2): 7.0}, 1.0, 60)) == [0, 2, 1]
