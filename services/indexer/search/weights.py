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

    code_dense_share: float = 0.5
    """The same for a piece of code."""

    symbol_dense_share: float = 0.0
    """The same for a name: a model of language knows few names."""

    path_dense_share: float = 0.1
    """The same for a path."""

    dense_pool: float = 0.6
    """Each further node of a file adds its closeness times this once more: 0 takes the best."""

    lexical_pool: float = 0.5
    """The same for the scores of terms."""

    outline_factor: float = 0.9
    """For windows, blocks, module headers and sections: definitions come first."""

    symbol_bonus: float = 1.0
    """Added for the definition of the name that is the whole question."""

    mention_bonus: float = 0.3
    """Added for the definition of a name that a longer question mentions."""

    subject_bonus: float = 0.3
    """For a file whose own name the question says: added to a factor of 1."""

    folder_bonus: float = 0.1
    """For each word of the file's folders in the question, of two at most; added likewise."""

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

    rerank_share: float = 0.5
    """Of both orders, what that of a reranker weighs for the hits that it scored; the order by all
    of the above weighs the rest. Counts only where there is a reranker."""

    def saturation(self, question: Question) -> float:
        """Returns the factor for each better hit in the same file."""
        return self.detailed_same_file_factor if question.is_detailed else self.same_file_factor

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
