"""Which nodes of a changed file stay, which are new, which go."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.indexer.model import NodeId, NodeKind, ParsedNode, StoredNode
from services.indexer.plan import match_nodes

_TEXT = st.sampled_from("abc")
_NAME = st.sampled_from(["f", "g"])
_PART = st.integers(0, 1)
_KEYS = st.lists(st.tuples(_TEXT, _NAME, _PART), max_size=12)


def _parsed(key: tuple[str, str, int]) -> ParsedNode:
    text, name, part = key
    return ParsedNode(
        NodeKind.FUNCTION, name, None, 0, 1, 1, 1, None, text.encode() * 32, part, 2, 1
    )


def _stored(number: int, key: tuple[str, str, int]) -> StoredNode:
    text, name, part = key
    return StoredNode(NodeId(number), NodeKind.FUNCTION, name, part, text.encode() * 32)


@given(parsed=_KEYS, stored=_KEYS)
def test_each_stored_node_is_kept_once_or_removed(
    parsed: list[tuple[str, str, int]], stored: list[tuple[str, str, int]]
) -> None:
    old = [_stored(number, key) for number, key in enumerate(stored)]

    plan = match_nodes([_parsed(key) for key in parsed], old)

    kept = [node for node in plan.kept if node is not None]
    assert len(plan.kept) == len(parsed)
    assert sorted([*kept, *plan.removed]) == [node.id for node in old]


@given(parsed=_KEYS, stored=_KEYS)
def test_a_node_is_kept_only_for_its_own_text_and_as_often_as_can_be(
    parsed: list[tuple[str, str, int]], stored: list[tuple[str, str, int]]
) -> None:
    old = {number: _stored(number, key) for number, key in enumerate(stored)}

    plan = match_nodes([_parsed(key) for key in parsed], old.values())

    for key, node in zip(parsed, plan.kept, strict=True):
        assert node is None or old[node].content_hash == key[0].encode() * 32
    common = Counter(key[0] for key in parsed) & Counter(key[0] for key in stored)
    assert sum(node is not None for node in plan.kept) == common.total()


@given(stored=_KEYS, data=st.data())
def test_nodes_that_only_moved_are_who_they_were(
    stored: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    """Twins of one text keep their names: what a name was found by stays where it was."""
    order = data.draw(st.permutations(range(len(stored))))
    old = {number: _stored(number, key) for number, key in enumerate(stored)}

    plan = match_nodes([_parsed(stored[number]) for number in order], old.values())

    for number, node in zip(order, plan.kept, strict=True):
        assert node is not None
        assert (old[node].qualified_name, old[node].part) == stored[number][1:]
    assert plan.removed == ()


def test_a_renamed_twin_does_not_take_the_place_of_the_one_that_stayed() -> None:
    plan = match_nodes(
        [_parsed(("a", "new", 0)), _parsed(("a", "stays", 0))],
        [_stored(1, ("a", "stays", 0)), _stored(2, ("a", "old", 0))],
    )

    assert plan.kept == (2, 1)
