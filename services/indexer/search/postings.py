"""Scores nodes by their terms: BM25 (Robertson and Zaragoza, 2009) over blocks of postings.

A term in a name or path adds to the score; a node that lacks terms of the question loses some of
it. What a term gives a node apart from the term's weight, its impact, is in the postings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from services.indexer.search.weights import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from services.indexer.model import NodeId
    from services.indexer.search.weights import Ranking

    Numbers: TypeAlias = NDArray[np.float64]
    Ids: TypeAlias = NDArray[np.int64]
    Flags: TypeAlias = NDArray[np.bool_]

K1 = 1.2
B = 0.75
NAME_WEIGHT = 1.5
"""What a term in a node's name or path adds, as a multiple of the term's weight."""

IMPACT_SCALE = 8192
"""Impacts are whole numbers of this part: the largest, 3.7, fits into 15 bits."""

RECIPE = f"1:{K1}:{B}:{NAME_WEIGHT}:{IMPACT_SCALE}"
"""What impacts were made by; those of another recipe are not read."""

_ENTRY = np.dtype(">u4")
"""Both halves at once: the place is the high one, and no impact has the highest bit of the low."""

_IMPACT_BITS, _IMPACT_MASK = 16, 0xFFFF


@dataclass(frozen=True, slots=True)
class Documents:
    """Nodes that are in no block: what n of them have of the t terms of a question."""

    nodes: Ids
    """Of shape (n,), in no order."""

    lengths: Numbers
    """Of shape (n,)."""

    counts: Ids
    """How often the text has each term; of shape (n, t)."""

    named: Flags
    """Whether the name has it; of shape (n, t)."""

    def holders(self, term: int) -> int:
        """Returns how many have a term, in their text or their name."""
        return int(np.count_nonzero((self.counts[:, term] > 0) | self.named[:, term]))


@dataclass(frozen=True, slots=True)
class Changes:
    """What is not as the blocks have it."""

    nodes: Ids
    """Nodes that changed, came or went, in ascending order."""

    there: int
    """How many of them are there."""

    documents: Documents
    """Those that are there and hold a term of the question."""


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes in ascending order, with the entries of the question's terms.

    Entries are pairs of 16 bits, big-endian: place of the node, and impact in parts of the scale.
    """

    nodes: Ids
    mean_length: float
    entries: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TermCounts:
    """What weights of terms are made of, in one workspace or in several together."""

    nodes: int
    holders: tuple[int, ...]
    """Of each term of a question, how many nodes hold it."""

    def joined(self, other: TermCounts) -> TermCounts:
        """Returns the counts of both; they are of the same terms."""
        pairs = zip(self.holders, other.holders, strict=True)
        return TermCounts(self.nodes + other.nodes, tuple(map(sum, pairs)))


@dataclass(frozen=True, slots=True)
class Candidates:
    """Nodes with their scores, in no order."""

    nodes: Ids
    scores: Numbers

    def best(self, limit: int) -> list[tuple[NodeId, float]]:
        """Returns the highest scores, the highest first; equal ones by id."""
        nodes, scores = self.nodes, self.scores
        if limit < len(scores):
            # All that are as good as the last one stay, so that ids decide between them.
            least = np.partition(scores, len(scores) - limit)[len(scores) - limit]
            kept = scores >= least
            nodes, scores = nodes[kept], scores[kept]
        order = np.lexsort((nodes, -scores))[:limit]
        found = cast("list[NodeId]", nodes[order].tolist())
        return list(zip(found, scores[order].tolist(), strict=True))

    def pieces(self, first: int, growth: int) -> Iterator[dict[NodeId, float]]:
        """Yields all scores, the best first, in pieces each so many times as long as the last."""
        order = np.lexsort((self.nodes, -self.scores))
        start, size = 0, first
        while start < len(order):
            piece = order[start : start + size]
            nodes = cast("list[NodeId]", self.nodes[piece].tolist())
            yield dict(zip(nodes, self.scores[piece].tolist(), strict=True))
            start, size = start + size, size * growth


def score(
    terms: Sequence[str],
    blocks: Sequence[Block],
    changes: Changes,
    ranking: Ranking = DEFAULTS,
    counts: TermCounts | None = None,
) -> Candidates:
    """Returns all nodes that hold one of the rarer terms, with their scores.

    Args:
        terms: the question's, each once.
        blocks: of nodes, none of which is in two; at least one.
        changes: what is not as blocks have it.
        ranking: the weights, of which those of terms count.
        counts: what terms are weighed by; None is by these nodes alone.
    """
    # Block by block: what is made of one stays in the processor's cache.
    views = [_View(block, terms, changes.nodes) for block in blocks]
    if counts is None:
        counts = _counted(views, changes)
    weights = np.array([_weight(counts.nodes, count) for count in counts.holders])
    rare = [0 < count <= ranking.common_share * counts.nodes for count in counts.holders]
    if not any(rare):
        rare = [count > 0 for count in counts.holders]
    found = [view.sums(weights, rare) for view in views]
    if len(changes.documents.nodes):
        found.append(_sums(changes.documents, weights, rare, _mean_length(blocks)))
    nodes = np.concatenate([nodes for nodes, _, _ in found])
    scores = [_lowered(sums, covered, weights, ranking) for _, sums, covered in found]
    return Candidates(nodes, np.concatenate(scores))


def count(terms: Sequence[str], blocks: Sequence[Block], changes: Changes) -> TermCounts:
    """Returns what terms are weighed by; the arguments are those of `score`."""
    return _counted([_View(block, terms, changes.nodes) for block in blocks], changes)


def _counted(views: Sequence[_View], changes: Changes) -> TermCounts:
    in_blocks = map(sum, zip(*(view.holders() for view in views), strict=True))
    holders = [held + changes.documents.holders(at) for at, held in enumerate(in_blocks)]
    return TermCounts(changes.there + sum(view.size for view in views), tuple(holders))


class _View:
    """A block as one question sees it: the entries of its terms, one term after the other."""

    def __init__(self, block: Block, terms: Sequence[str], changed: Ids) -> None:
        self._block = block
        data = [block.entries.get(term, b"") for term in terms]
        self._bounds = np.cumsum([0, *(len(part) // _ENTRY.itemsize for part in data)])
        entries = np.frombuffer(b"".join(data), dtype=_ENTRY).astype(np.int64)
        self._places = entries >> _IMPACT_BITS
        self._impacts = entries & _IMPACT_MASK
        self._alive = _alive(block, changed)
        self.size = len(block.nodes)
        if self._alive is not None:
            self.size = int(np.count_nonzero(self._alive))

    def holders(self) -> list[int]:
        """Returns how many nodes hold each term."""
        if self._alive is None:
            return [int(last - first) for first, last in pairwise(self._bounds)]
        alive = self._alive[self._places]
        return [int(np.count_nonzero(alive[a:b])) for a, b in pairwise(self._bounds)]

    def sums(self, weights: Numbers, rare: Sequence[bool]) -> tuple[Ids, Numbers, Numbers]:
        """Returns the nodes that hold a rare term, and the sums of their impacts and weights."""
        slots, sizes = len(self._block.nodes), np.diff(self._bounds)
        parts = self._impacts * np.repeat(weights / IMPACT_SCALE, sizes)
        each = np.repeat(weights, sizes)
        sums = np.bincount(self._places, parts, slots).astype(np.float64, copy=False)
        covered = np.bincount(self._places, each, slots).astype(np.float64, copy=False)
        found = np.zeros(slots, dtype=np.bool_)
        found[self._places[np.repeat(rare, sizes)]] = True
        if self._alive is not None:
            found &= self._alive
        chosen = np.flatnonzero(found)
        return self._block.nodes[chosen], sums[chosen], covered[chosen]


def _sums(
    documents: Documents, weights: Numbers, rare: Sequence[bool], mean_length: float
) -> tuple[Ids, Numbers, Numbers]:
    """Returns the same as a block's `sums`, of nodes in no block."""
    has = (documents.counts > 0) | documents.named
    chosen = np.flatnonzero(has[:, np.array(rare, dtype=np.bool_)].any(axis=1))
    counts = documents.counts[chosen].astype(np.float64)
    norms = K1 * (1 - B + B * documents.lengths[chosen, np.newaxis] / mean_length)
    impacts = counts * (K1 + 1) / (counts + norms) + NAME_WEIGHT * documents.named[chosen]
    covered = has[chosen] @ weights
    return documents.nodes[chosen], impacts @ weights, covered


def _lowered(sums: Numbers, covered: Numbers, weights: Numbers, ranking: Ranking) -> Numbers:
    """Returns scores less what nodes lose that lack terms."""
    lowered: Numbers = sums * (covered / weights.sum()) ** ranking.coverage_power
    return lowered


def _weight(total: int, holders: int) -> float:
    """Returns a term's weight, 0 for one that nobody holds."""
    return math.log(1 + (total - holders + 0.5) / (holders + 0.5)) if holders else 0.0


def _alive(block: Block, changed: Ids) -> Flags | None:
    """Returns which nodes are as their block has them, in its order; None for all."""
    first, last = np.searchsorted(changed, (block.nodes[0], block.nodes[-1] + 1))
    if first == last:
        return None
    nodes = changed[first:last]
    places = np.searchsorted(block.nodes, nodes)
    alive = np.ones(len(block.nodes), dtype=np.bool_)
    alive[places[block.nodes[places] == nodes]] = False
    return alive


def _mean_length(blocks: Sequence[Block]) -> float:
    sizes = [len(block.nodes) for block in blocks]
    return float(np.average([block.mean_length for block in blocks], weights=sizes))
