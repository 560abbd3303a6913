"""Cuts code and questions into terms that match each other.

An identifier counts as itself and as its words: `getHTTPResponse_v2` gives `gethttpresponse_v2`,
`get`, `http`, `response`, `v2`. All terms are lower case.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

_IDENTIFIER = re.compile(r"[^\W_](?:\w*[^\W_])?")
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")
_LONGEST_TERM = 64
"""Longer runs of letters are data, such as base64: they are cut."""

_MOST_TERMS = 4096
"""Most different terms that are kept of one text."""


def content_terms(text: str) -> dict[str, int]:
    """Returns the terms of a text with how often each occurs."""
    counts: Counter[str] = Counter()
    for identifier, times in Counter(_IDENTIFIER.findall(text)).items():
        for term in _split(identifier):
            counts[term] += times
    if len(counts) > _MOST_TERMS:
        return dict(counts.most_common(_MOST_TERMS))
    return dict(counts)


def query_terms(query: str) -> tuple[str, ...]:
    """Returns the different terms of a question, in order."""
    return tuple(
        dict.fromkeys(term for found in _IDENTIFIER.findall(query) for term in _split(found))
    )


@lru_cache(maxsize=4096)
def name_terms(path: str, qualified_name: str) -> tuple[str, ...]:
    """Returns the different terms of a node's name and of its file's path."""
    return query_terms(f"{path} {qualified_name}")


@lru_cache(maxsize=65536)
def _split(identifier: str) -> tuple[str, ...]:
    """Returns an identifier and its words, each once."""
    whole = identifier[:_LONGEST_TERM].lower()
    return tuple(dict.fromkeys((whole, *_words(identifier[:_LONGEST_TERM]))))


def _words(identifier: str) -> list[str]:
    if identifier.isascii():
        return [word.lower() for word in _WORD.findall(identifier)]
    # Other scripts have capitals too: words are found in the shape, and cut from the text.
    shape = "".join(map(_shape, identifier))
    return [identifier[slice(*word.span())].lower() for word in _WORD.finditer(shape)]


def _shape(character: str) -> str:
    if character == "_":
        return "_"
    if character.isdigit():
        return "0"
    return "A" if character.isupper() else "a"
