"""Cuts the endings of English words, so that `handlers`, `handling` and `handle` are one term."""

from __future__ import annotations

from functools import lru_cache

_LEAST_LETTERS = 4
"""What is left of a word when an ending goes: shorter rests are other words."""

_ENDINGS = (
    "ization", "isation", "ation", "ating", "ated", "ator", "ate", "izer", "izing", "ized", "ize",
    "ings", "ing", "ed", "ers", "er", "ors", "or", "ion", "able", "ible", "ment", "e",
)  # fmt: skip
"""Endings that form verbs and nouns, the longer before the shorter that it ends in."""

_VOWELS = frozenset("aeiouy")
_SIBILANTS = ("x", "ch", "sh", "z")
_KEPT_DOUBLE = "lsz"


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Returns the stem of a lower-case word; what is no plain word of ASCII letters stays.

    Lighter than Porter's (1980): one ending after the plural, which names in code bear better.
    """
    if len(word) < _LEAST_LETTERS or not (word.isascii() and word.isalpha()):
        return word
    rest = _without_ending(_singular(word))
    if len(rest) > _LEAST_LETTERS and rest[-1] == rest[-2] and rest[-1] not in _KEPT_DOUBLE:
        rest = rest[:-1]
    if len(rest) > _LEAST_LETTERS and rest.endswith("y"):
        rest = rest[:-1] + "i"
    return rest


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > _LEAST_LETTERS:
        return word[:-3] + "y"
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("es") and len(word) > _LEAST_LETTERS and word[:-2].endswith(_SIBILANTS):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _without_ending(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending):
            rest = word[: -len(ending)]
            if len(rest) >= _LEAST_LETTERS and not _VOWELS.isdisjoint(rest):
                return rest
    return word
