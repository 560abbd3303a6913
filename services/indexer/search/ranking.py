"""Joins the arms of a search and applies what is known of code beside its text.

Files are ranked, and in each file its nodes: a question is mostly about a place, and several
middling nodes of one file say more than a lucky one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from services.indexer.model import NodeKind
from services.indexer.search.places import newest_versions
from services.indexer.search.priors import FilePriors
from services.indexer.search.question import NAME_MARKS, QuestionKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeAlias

    from services.indexer.model import NodeId
    from services.indexer.search.model import Hit
    from services.indexer.search.question import Question
    from services.indexer.search.weights import Ranking

_OUTLINES = frozenset({NodeKind.WINDOW, NodeKind.BLOCK, NodeKind.MODULE, NodeKind.SECTION})
_DEFINES = frozenset({NodeKind.CLASS, NodeKind.FUNCTION, NodeKind.METHOD, NodeKind.BLOCK})


@dataclass(frozen=True, slots=True)
class Arms:
    """What each arm of a search found: its own score of each node."""

    dense: Mapping[NodeId, float] = field(default_factory=dict)
    lexical: Mapping[NodeId, float] = field(default_factory=dict)
    named: frozenset[NodeId] = frozenset()
    """Nodes that are called as the question names."""

    @property
    def nodes(self) -> frozenset[NodeId]:
        """All that was found."""
        return frozenset(self.dense) | frozenset(self.lexical) | self.named


class Ranked(NamedTuple):
    """A hit in its place: its score is what both arms give, times the factors by name."""

    hit: Hit
    fused: float
    factors: Mapping[str, float]


class Parts(NamedTuple):
    """What a hit is worth in its file: what the arms give, times a factor, and what its name adds.

    Its score before factors is this times what the nodes of its file say together.
    """

    arms: float
    outline: float
    definition: float

    @property
    def worth(self) -> float:
        """All of it."""
        return self.arms * self.outline + self.definition


_Candidate: TypeAlias = "tuple[float, int, int, Hit, float, float, float]"
"""A hit in its file, in the order that they sort by: what it is worth there less than zero, its
start, its number among all hits, which no other has, the hit, and what the arms and its name give.
A plain tuple: a search makes hundreds."""


def rank(ranking: Ranking, question: Question, arms: Arms, hits: Iterable[Hit]) -> list[Ranked]:
    """Returns hits best first with their scores; equal ones by path and place.

    Args:
        ranking: the weights.
        question: what was asked.
        arms: what was found, with scores.
        hits: what is known of the nodes found; those that are gone by now may miss.
    """
    share = _dense_share(ranking, question, arms)
    by_file = _by_file(ranking, question, arms, hits, share)
    newest = newest_versions(frozenset(path for _, path in by_file))
    priors, pooling = FilePriors(ranking, question), _Pooling.of(ranking, question, share)
    ranked: list[tuple[float, str, str, int, int, Hit, float, Mapping[str, float]]] = []
    for (workspace, path), candidates in by_file.items():
        for score, hit, fused, factors in _rank_file(pooling, candidates, priors.of(path, newest)):
            place = (-score, workspace, path, hit.start_byte, len(ranked))
            ranked.append((*place, hit, fused, factors))
    ranked.sort()
    return [
        Ranked(hit.scored(-loss), fused, factors)
        for loss, _, _, _, _, hit, fused, factors in ranked
    ]


def parts_of(
    ranking: Ranking, question: Question, arms: Arms, hits: Iterable[Hit]
) -> dict[NodeId, Parts]:
    """Returns what hits are worth in their files, as `rank` has it."""
    parts: dict[NodeId, Parts] = {}
    share = _dense_share(ranking, question, arms)
    for candidates in _by_file(ranking, question, arms, hits, share).values():
        for loss, _, _, hit, _, _, definition in candidates:
            outline = ranking.outline_factor if hit.kind in _OUTLINES else 1.0
            own = -loss - definition
            parts[hit.node_id] = Parts(own / outline if outline else 0.0, outline, definition)
    return parts


def _by_file(
    ranking: Ranking, question: Question, arms: Arms, hits: Iterable[Hit], share: float
) -> Mapping[tuple[str, str], list[_Candidate]]:
    """Returns hits with what they are worth, by workspace and path."""
    by_file: dict[tuple[str, str], list[_Candidate]] = defaultdict(list)
    own_names = frozenset(question.own_names)
    dense_of, lexical_of = _spread(arms.dense).get, _to_best(arms.lexical).get
    definition = 0.0
    for number, hit in enumerate(hits):
        node, factor = hit.node_id, ranking.outline_factor if hit.kind in _OUTLINES else 1.0
        dense, lexical = dense_of(node, 0.0), lexical_of(node, 0.0)
        if own_names:
            definition = _definition(ranking, question, own_names, hit)
        worth = factor * (share * dense + (1 - share) * lexical) + definition
        by_file[hit.workspace_name, hit.path].append(
            (-worth, hit.start_byte, number, hit, dense * factor, lexical * factor, definition)
        )
    return by_file


def _dense_share(ranking: Ranking, question: Question, arms: Arms) -> float:
    """Returns what the vectors weigh: all where no term is found.

    A word that prose has too, and that nothing is called, is no name but what is looked for.
    """
    if not arms.lexical:
        return 1.0
    if question.is_word and not arms.named:
        return ranking.dense_share(QuestionKind.NATURAL)
    return ranking.dense_share(question.kind)


class _Pooling(NamedTuple):
    """How the scores of a file's nodes are added up, and what later ones lose."""

    dense_share: float
    dense_decays: Sequence[float]
    lexical_decays: Sequence[float]
    saturation: float

    @classmethod
    def of(cls, ranking: Ranking, question: Question, share: float) -> _Pooling:
        """Returns what weights say of a question in which the vectors have a share."""
        places = range(1 + int(ranking.pool_limit))
        return cls(
            share,
            [ranking.dense_pool**place for place in places],
            [ranking.lexical_pool**place for place in places],
            ranking.saturation(question),
        )


def _rank_file(
    pooling: _Pooling, candidates: list[_Candidate], priors: Mapping[str, float]
) -> Iterable[tuple[float, Hit, float, Mapping[str, float]]]:
    """Returns score, hit, score before factors, and these, of the hits of one file.

    Its best node has the file's score, others a share of it.
    """
    share, prior = pooling.dense_share, math.prod(priors.values())
    if len(candidates) == 1:
        _, _, _, hit, dense, lexical, definition = candidates[0]
        fused = share * dense + (1 - share) * lexical + definition
        return ((fused * prior, hit, fused, priors),)
    _, _, _, _, all_dense, all_lexical, definitions = zip(*candidates, strict=True)
    dense = _pooled(all_dense, pooling.dense_decays)
    lexical = _pooled(all_lexical, pooling.lexical_decays)
    fused = share * dense + (1 - share) * lexical + max(definitions)
    candidates.sort()
    best = -candidates[0][0]
    ranked = []
    for place, (loss, _, _, hit, _, _, _) in enumerate(candidates):
        lowered = pooling.saturation**place
        factors = {**priors, "same_file": lowered} if place else priors
        part = fused * (-loss / best if best > 0 else 1.0)
        ranked.append((part * (prior * lowered), hit, part, factors))
    return ranked


def _definition(ranking: Ranking, question: Question, own_names: frozenset[str], hit: Hit) -> float:
    """Returns what is added for a node that is called as the question names."""
    own_name = hit.qualified_name.rpartition(".")[2].strip(NAME_MARKS).lower()
    if own_name not in own_names or hit.kind not in _DEFINES:
        return 0.0
    parts = [part.strip(NAME_MARKS).lower() for part in hit.qualified_name.split(".")]
    worth = _of_kind(ranking, hit.kind) * (ranking.later_part_factor if hit.part else 1.0)
    if any(len(name) > 1 and tuple(parts[-len(name) :]) == name for name in question.names):
        worth *= ranking.scope_factor
    is_whole = question.kind is QuestionKind.SYMBOL
    return worth * (ranking.symbol_bonus if is_whole else ranking.mention_bonus)


def _of_kind(ranking: Ranking, kind: NodeKind) -> float:
    """Returns how far a node of a kind that defines is the definition of its name."""
    if kind is NodeKind.METHOD:
        return ranking.method_factor
    return ranking.block_factor if kind is NodeKind.BLOCK else 1.0


def _spread(scores: Mapping[NodeId, float]) -> dict[NodeId, float]:
    """Returns scores from 0, the least found, to 1: cosines of a model lie in a narrow band."""
    if not scores:
        return {}
    least, best = min(scores.values()), max(scores.values())
    if best <= least:
        return dict.fromkeys(scores, 1.0)
    return {node: (score - least) / (best - least) for node, score in scores.items()}


def _to_best(scores: Mapping[NodeId, float]) -> dict[NodeId, float]:
    """Returns scores as shares of the best: a term that is not there is worth nothing."""
    best = max(scores.values(), default=0.0)
    return {node: score / best for node, score in scores.items()} if best > 0 else {}


def _pooled(scores: Sequence[float], decays: Sequence[float]) -> float:
    """Returns the sum of the best scores, each further one times a smaller decay."""
    best = sorted(scores, reverse=True)
    return sum([score * decay for score, decay in zip(best, decays, strict=False)])
