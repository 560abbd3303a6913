"""The weights of ranking: ADR 23 tells what each was measured to be worth."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from services.indexer.search.question import QuestionKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.indexer.search.question import Question


@dataclass(frozen=True, slots=True)
class Ranking:
    """Weights of arms and priors, each a number of at least 0; a factor of 1 changes nothing."""

    natural_dense_share: float = 0.5
    """Of both arms, what the vectors weigh for a question in words; the terms weigh the rest."""

    code_dense_share: float = 0.2
    """The same for a piece of code."""

    symbol_dense_share: float = 0.0
    """The same for a name: a model of language knows few names."""

    path_dense_share: float = 0.1
    """The same for a path."""

    dense_pool: float = 0.6
    """Each further node of a file adds its closeness times this once more: 0 takes the best."""

    lexical_pool: float = 0.5
    """The same for the scores of terms."""

    pool_limit: float = 9
    """Most further nodes of a file whose closeness or scores are added."""

    coverage_power: float = 0.3
    """By terms, a node's score is multiplied by the share that it has of the weights of all terms
    of the question, to this power: at 0 it loses nothing by a term that it lacks."""

    common_share: float = 0.2
    """A term that a larger share of nodes holds finds no candidates; it still counts in scores."""

    outline_factor: float = 0.9
    """For windows, blocks, module headers and sections: definitions come first."""

    symbol_bonus: float = 1.0
    """Added for the definition of the name that is the whole question."""

    mention_bonus: float = 0.3
    """Added for the definition of a name that a longer question mentions."""

    method_factor: float = 0.5
    """For methods, of both of these: many classes have a method `get`."""

    block_factor: float = 0.5
    """The same for blocks with a name."""

    later_part_factor: float = 0.3
    """The same for a later part of a long definition: its name stands in the first."""

    scope_factor: float = 2.0
    """The same for what lies in the scope that the question names with it: `Store::get`."""

    subject_bonus: float = 0.3
    """For a file whose own name the question says: added to a factor of 1."""

    partial_word_factor: float = 0.8
    """What a word of a file's name counts that the question shortens, lengthens or joins."""

    folder_bonus: float = 0.1
    """For each word of the file's folders in the question; added likewise."""

    folder_limit: float = 2
    """Most words of folders that count."""

    path_bonus: float = 2.0
    """For a file whose path ends in the question; added likewise."""

    test_factor: float = 0.4
    """For files of tests, unless the question speaks of tests."""

    document_factor: float = 0.3
    """For documents, unless the question speaks of documents."""

    aside_factor: float = 0.6
    """For examples, vendored, generated and deprecated files, unless the question names such."""

    superseded_factor: float = 0.5
    """For what lies in a folder `v1` beside a `v2`, unless the question names the version."""

    same_file_factor: float = 0.2
    """For each better hit in the same file."""

    detailed_same_file_factor: float = 0.9
    """The same where the question is a piece of code or describes one: the file is not enough."""

    detail_limit: float = 12
    """A question with more telling words describes what a single function does."""

    rerank_share: float = 0.5
    """Of both orders, what that of a reranker weighs for the hits that it scored; the order by all
    of the above weighs the rest. Counts only where there is a reranker."""

    rerank_smoothing: float = 60
    """Added to a place of either order before it is inverted: of Cormack, Clarke, Buettcher,
    "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods" (2009)."""

    def saturation(self, question: Question) -> float:
        """Returns the factor for each better hit in the same file."""
        is_code = question.kind is QuestionKind.CODE
        if is_code or len(question.words) > self.detail_limit:
            return self.detailed_same_file_factor
        return self.same_file_factor

    def dense_share(self, kind: QuestionKind) -> float:
        """Returns what the vectors weigh for a kind of question."""
        match kind:
            case QuestionKind.SYMBOL:
                return self.symbol_dense_share
            case QuestionKind.PATH:
                return self.path_dense_share
            case QuestionKind.CODE:
                return self.code_dense_share
            case QuestionKind.NATURAL:
                return self.natural_dense_share


DEFAULTS = Ranking()
WEIGHTS = tuple(item.name for item in fields(Ranking))
_LARGEST_WEIGHT = 100.0


def read_weights(assignments: Iterable[str]) -> Ranking:
    """Returns the default weights with some changed, each `name=number`.

    Raises:
        ValueError: a name is unknown, or a number is not in its range.
    """
    changed: dict[str, float] = {}
    for assignment in assignments:
        name, _, number = assignment.partition("=")
        if name not in WEIGHTS:
            raise ValueError(f"{name} is no weight; there are {', '.join(WEIGHTS)}")
        largest = 1.0 if name.endswith("_share") else _LARGEST_WEIGHT
        try:
            changed[name] = float(number)
        except ValueError:
            raise ValueError(f"write {name}=number") from None
        if not 0 <= changed[name] <= largest:
            raise ValueError(f"{name} is 0 to {largest:g}")
    return Ranking(**changed)
