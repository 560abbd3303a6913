"""What the path of a file says of its worth for a question, beside its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.search.places import read_place, superseded
from services.indexer.search.subjects import SubjectMatcher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.indexer.search.question import Question
    from services.indexer.search.weights import Ranking


class FilePriors:
    """Tells the factors of files for one question, which is taken apart once for all of them."""

    def __init__(self, ranking: Ranking, question: Question) -> None:
        self._ranking = ranking
        self._question = question
        self._terms = frozenset(question.terms)
        self._subjects = SubjectMatcher(question.terms, question.words, ranking.partial_word_factor)
        self._path = question.path
        self._end = self._path.lstrip("./")
        self._whole_end = f"/{self._end}"

    def of(self, path: str, newest: Mapping[str, int]) -> dict[str, float]:
        """Returns the factors of a file by name, those of 1 left out.

        Args:
            path: where it is in its workspace.
            newest: the highest `v<number>` folder among all that was found, by what is before it.
        """
        ranking, question, place = self._ranking, self._question, read_place(path)
        file = 1 + ranking.subject_bonus * self._subjects.share(place.subject)
        if not place.folders.isdisjoint(self._terms):
            said = len(place.folders & self._terms)
            file += ranking.folder_bonus * min(said, ranking.folder_limit)
        if self._is_asked_for(path):
            file += ranking.path_bonus
        factors = {"file": file} if file != 1 else {}
        if place.is_test and not question.wants_tests:
            factors["test"] = ranking.test_factor
        if place.is_document and not question.wants_documents:
            factors["document"] = ranking.document_factor
        if place.asides and place.asides.isdisjoint(question.wants_aside):
            factors["aside"] = ranking.aside_factor
        if place.versions:
            old = superseded(path, newest)
            if old is not None and f"v{old}" not in question.words:
                factors["superseded"] = ranking.superseded_factor
        if 1 in factors.values():
            return {name: factor for name, factor in factors.items() if factor != 1}
        return factors

    def _is_asked_for(self, path: str) -> bool:
        if path in {self._path, self._end} or path.endswith(self._whole_end):
            return True
        # A path of another place on a disk, or from above the tree, ends in the file's own.
        return "/" in path and self._path.endswith(f"/{path}")
