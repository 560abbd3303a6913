"""Scores over blocks of postings are those of the formula written out, whatever changed since."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.search.postings import (
    IMPACT_SCALE,
    Block,
    Candidates,
    Changes,
    TermCounts,
    count,
    score,
)
from services.indexer.search.weights import Ranking
from services.indexer.storage.term_notes import Noted, NotedTerms

_TERMS = ("alpha", "beta", "gamma", "delta")
_MEAN = 20.0


@dataclass(frozen=True, slots=True)
class _Node:
    """What a node holds of the terms."""

    length: int
    counts: tuple[int, ...]
    named: tuple[bool, ...]

    def impact(self, term: int) -> float:
        norm = 1.2 * (0.25 + 0.75 * self.length / _MEAN)
        count = self.counts[term]
        return count * 2.2 / (count + norm) + 1.5 * self.named[term]


_NODES = st.builds(
    _Node,
    st.integers(1, 200),
    st.tuples(*[st.sampled_from([0] * share + [1, 2, 5]) for share in (0, 4, 20, 40)]),
    st.tuples(*[st.sampled_from([False] * 20 + [True])] * len(_TERMS)),
)
"""The first term is in most nodes, the last in few."""

_NO_CHANGES = Changes(np.array([], dtype=np.int64), 0, Noted().changes(_TERMS).documents)
_CORPORA = st.dictionaries(st.integers(1, 500), _NODES, min_size=1, max_size=60)


def _terms_of(node: _Node) -> NotedTerms:
    counted = [(term, count) for term, count in zip(_TERMS, node.counts, strict=True) if count]
    return NotedTerms.of(
        node.length,
        [term for term, _ in counted],
        [count for _, count in counted],
        [term for term, is_there in zip(_TERMS, node.named, strict=True) if is_there],
    )


def _block(nodes: dict[int, _Node]) -> Block:
    """Returns nodes as the index stores them."""
    ordered = sorted(nodes)
    entries: dict[str, bytes] = {}
    for place, node in enumerate(ordered):
        for at, term in enumerate(_TERMS):
            if impact := nodes[node].impact(at):
                pair = struct.pack(">hh", place, max(1, round(impact * IMPACT_SCALE)))
                entries[term] = entries.get(term, b"") + pair
    return Block(np.array(ordered, dtype=np.int64), _MEAN, entries)


def _blocks(nodes: dict[int, _Node], size: int) -> list[Block]:
    ordered = sorted(nodes)
    return [
        _block({node: nodes[node] for node in ordered[start : start + size]})
        for start in range(0, len(ordered), size)
    ]


def _by_hand(nodes: dict[int, _Node]) -> dict[int, float]:
    """Returns the scores of the nodes that hold one of the rarer terms."""
    holders = [sum(node.impact(at) > 0 for node in nodes.values()) for at in range(len(_TERMS))]
    weights = [
        math.log(1 + (len(nodes) - held + 0.5) / (held + 0.5)) if held else 0.0 for held in holders
    ]
    rare = {at for at, held in enumerate(holders) if 0 < held <= 0.2 * len(nodes)}
    rare = rare or {at for at, held in enumerate(holders) if held}
    scores = {}
    for number, node in nodes.items():
        held = [at for at in range(len(_TERMS)) if node.impact(at) > 0]
        if rare.intersection(held):
            whole = sum(weights[at] * node.impact(at) for at in held)
            share = sum(weights[at] for at in held) / sum(weights)
            scores[number] = whole * share**0.3
    return scores


def _as_dict(candidates: Candidates) -> dict[int, float]:
    return dict(zip(candidates.nodes.tolist(), candidates.scores.tolist(), strict=True))


@given(nodes=_CORPORA, size=st.integers(1, 60))
def test_parts_of_a_corpus_weigh_terms_by_the_counts_of_all(
    nodes: dict[int, _Node], size: int
) -> None:
    """As the parts are workspaces that are searched together."""
    parts = [[block] for block in _blocks(nodes, size)]
    counts = [count(_TERMS, part, _NO_CHANGES) for part in parts]
    both = reduce(TermCounts.joined, counts)

    scores: dict[int, float] = {}
    for part in parts:
        scores |= _as_dict(score(_TERMS, part, _NO_CHANGES, counts=both))

    assert both == count(_TERMS, _blocks(nodes, size), _NO_CHANGES)
    assert scores == pytest.approx(_as_dict(score(_TERMS, _blocks(nodes, size), _NO_CHANGES)))


@given(nodes=_CORPORA, size=st.integers(1, 60))
def test_scores_of_blocks_are_those_of_the_formula(nodes: dict[int, _Node], size: int) -> None:
    """Planted once: common terms that find candidates, and nodes that lose nothing."""
    found = score(_TERMS, _blocks(nodes, size), _NO_CHANGES)

    assert _as_dict(found) == pytest.approx(_by_hand(nodes), abs=4e-3)


@given(
    before=_CORPORA,
    edits=st.dictionaries(st.integers(1, 500), st.none() | _NODES, max_size=30),
    size=st.integers(1, 60),
)
def test_what_changed_since_counts_as_it_is_now(
    before: dict[int, _Node], edits: dict[int, _Node | None], size: int
) -> None:
    """Planted once: changed nodes that keep their entries, that do not count, or have no name."""
    now = {node: item for node, item in (before | edits).items() if item is not None}
    there = [node for node in edits if node in now]
    read = {node: None if item is None else _terms_of(item) for node, item in edits.items()}
    noted = Noted().advanced([7], {7: list(edits)}, read)
    changes = noted.changes(_TERMS)
    assert changes.there == len(there)

    found = score(_TERMS, _blocks(before, size), changes)

    assert _as_dict(found) == pytest.approx(_by_hand(now), abs=4e-3)


def test_the_last_place_of_a_full_block_and_the_largest_impact_are_read() -> None:
    """Planted once: a place of 14 bits, and one less of the impact's bits."""
    largest = 2**15 - 1
    entries = {"rare": struct.pack(">hh", 2**15 - 1, largest)}
    block = Block(np.arange(1, 2**15 + 1, dtype=np.int64), _MEAN, entries)

    found = score(("rare",), [block], _NO_CHANGES)

    weight = math.log(1 + (2**15 - 0.5) / 1.5)
    assert _as_dict(found) == pytest.approx({2**15: weight * largest / IMPACT_SCALE})


@given(
    scores=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=40),
    limit=st.integers(1, 50),
    growth=st.integers(1, 4),
)
def test_the_best_come_first_and_equal_ones_by_id(
    scores: list[float], limit: int, growth: int
) -> None:
    """Planted once: a cut that keeps equal scores as they come."""
    nodes = np.random.default_rng(len(scores)).permutation(len(scores)).astype(np.int64)
    candidates = Candidates(nodes, np.array(scores))
    ordered = sorted(zip(scores, nodes.tolist(), strict=True), key=lambda item: (-item[0], item[1]))

    best = candidates.best(limit)
    pieces = list(candidates.pieces(limit, growth))

    assert best == [(node, value) for value, node in ordered[:limit]]
    assert [node for piece in pieces for node in piece] == [node for _, node in ordered]
    assert [len(piece) for piece in pieces[:-1]] == [
        limit * growth**number for number in range(len(pieces) - 1)
    ]


def test_what_lacking_terms_cost_and_which_find_candidates_are_weights() -> None:
    """Red when a constant stands where either weight should."""
    full = {number: _Node(20, (1, 0, 0, 0), (False,) * 4) for number in range(1, 10)}
    blocks = [_block(full | {10: _Node(20, (0, 1, 0, 0), (False,) * 4)})]

    usual = _as_dict(score(_TERMS[:2], blocks, _NO_CHANGES))
    mild = _as_dict(score(_TERMS[:2], blocks, _NO_CHANGES, Ranking(coverage_power=0)))
    broad = _as_dict(score(_TERMS[:2], blocks, _NO_CHANGES, Ranking(common_share=1)))

    common, rare = (math.log(1 + (10 - held + 0.5) / (held + 0.5)) for held in (9, 1))
    assert set(usual) == set(mild) == {10}
    assert usual[10] == pytest.approx(mild[10] * (rare / (rare + common)) ** 0.3)
    assert set(broad) == set(range(1, 11))


def test_terms_that_nobody_holds_find_nothing() -> None:
    found = score(("absent",), [_block({1: _Node(5, (1, 0, 0, 0), (False,) * 4)})], _NO_CHANGES)

    assert found.best(10) == []
