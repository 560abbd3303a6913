"""Tells where in a text the terms of a question stand."""

from __future__ import annotations

import re

from services.indexer.search.stemming import stem
from services.indexer.search.terms import is_unspaced, query_terms, written_terms

MOST_RANGES = 200
"""Most ranges that are told of one text."""

_IDENTIFIER = re.compile(r"\w+")
_LONGEST_IDENTIFIER = 64
_SHORTEST_TERM = 2
_COMMON = frozenset(
    [
        *("a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from"),
        *("how", "if", "in", "is", "it", "its", "not", "of", "on", "or", "that", "the", "then"),
        *("this", "to", "was", "what", "when", "where", "which", "who", "why", "with"),
    ]
)


def matched_ranges(query: str, text: str) -> list[tuple[int, int]]:
    """Returns the ranges of a text that match a term of a question, in order, at most 200.

    A range is a pair of first and last byte (exclusive) of the text in UTF-8. An identifier matches
    as a whole or by its words, by the rules of the lexical index; words that every English
    question holds match nothing, unless the question has no others.
    """
    terms = set(query_terms(query))
    telling = {term for term in terms if len(term) >= _SHORTEST_TERM and term not in _COMMON}
    wanted = telling or terms
    ranges: list[tuple[int, int]] = []
    bytes_before, position = 0, 0
    for identifier in _IDENTIFIER.finditer(text):
        for start, end in _within(identifier[0], wanted):
            first, last = identifier.start() + start, identifier.start() + end
            bytes_before += len(text[position:first].encode())
            size = len(text[first:last].encode())
            ranges.append((bytes_before, bytes_before + size))
            bytes_before, position = bytes_before + size, last
            if len(ranges) == MOST_RANGES:
                return ranges
    return ranges


def _within(identifier: str, wanted: set[str]) -> list[tuple[int, int]]:
    """Returns the ranges of characters of an identifier that are wanted, none over another."""
    if len(identifier) > _LONGEST_IDENTIFIER:
        return []
    terms = [term for term in written_terms(identifier) if stem(term) in wanted]
    lowered = identifier.lower()
    if not terms or len(lowered) != len(identifier):
        return [(0, len(identifier))] if terms else []
    found: list[tuple[int, int]] = []
    for term in sorted(terms, key=len, reverse=True):
        for match in re.finditer(re.escape(term), lowered):
            start, end = match.span()
            apart = all(start >= last or end <= first for first, last in found)
            if apart and _begins_word(identifier, start):
                found.append((start, end))
    return sorted(found)


def _begins_word(identifier: str, position: int) -> bool:
    if position == 0:
        return True
    before, here = identifier[position - 1], identifier[position]
    if is_unspaced(before) or is_unspaced(here):
        return True
    return before == "_" or here.isupper() or before.isdigit() or here.isdigit()
