"""Tells how well a question speaks of what a file is called after."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_WORD, _LEAST_TERM, _LEAST_PIECE, _LEAST_COMPOUND = 3, 4, 3, 6


class SubjectMatcher:
    """Matches the names of files with one question: many are called after the same words.

    Args:
        terms: stems of the question.
        words: the words of the question as they are written.
        partial: what a word counts that a question's word begins with, or the other way round.
    """

    def __init__(self, terms: Sequence[str], words: Sequence[str], partial: float) -> None:
        self._terms = terms
        self._words = words
        self._partial = partial
        self._known: dict[str, float] = dict.fromkeys(terms, 1.0)

    def share(self, subject: Sequence[str]) -> float:
        """Returns the share, 0 to 1, of a name's words that the question has.

        Args:
            subject: stems of the words of the name.
        """
        if not subject or not self._terms:
            return 0.0
        known = self._known
        total = 0.0
        for word in subject:
            worth = known.get(word)
            if worth is None:
                worth = known[word] = self._worth(word)
            total += worth
        return total / len(subject)

    def _worth(self, word: str) -> float:
        """Returns what a word counts that is none of the question's stems."""
        for term in self._terms:
            # Code shortens: `param` is `parameter`, `util` is `utility`; and it joins:
            # `pathparser`.
            if len(word) >= _LEAST_WORD and term.startswith(word):
                return self._partial
            if len(term) >= _LEAST_TERM and word.startswith(term):
                return self._partial
        if len(word) >= _LEAST_COMPOUND and _is_spelled(word, self._words):
            return self._partial
        return 0.0


def _is_spelled(word: str, words: Sequence[str]) -> bool:
    """Tells whether a word is nothing but beginnings of others: `urlmap` of `url` and `mapping`."""
    reached = [True, *([False] * len(word))]
    for start in range(len(word)):
        if not reached[start]:
            continue
        for other in words:
            shared = _shared_length(word, start, other)
            for length in range(_LEAST_PIECE, shared + 1):
                reached[start + length] = True
    return reached[-1]


def _shared_length(word: str, start: int, other: str) -> int:
    length = 0
    while length < len(other) and start + length < len(word):
        if word[start + length] != other[length]:
            break
        length += 1
    return length
