"""Cuts code and questions into terms that match each other.

An identifier counts as itself and as its words: `getHTTPResponse_v2` gives `gethttpresponse_v2`,
`get`, `http`, `respons`, `v2`. All terms are lower case, and stems where they are plain words.
What is written without blanks, such as Chinese, counts by the pairs of its signs as well.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from services.indexer.search.stemming import stem

if TYPE_CHECKING:
    from collections.abc import Iterable


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


_IDENTIFIER = re.compile(r"[^\W_](?:\w*[^\W_])?")
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")
_UNSPACED = (
    "\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Chinese, Japanese and Korean: words there have no bounds, or endings without one."""

_UNSPACED_SIGN = re.compile(f"[{_UNSPACED}]")
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_JOINT = re.compile(r"(?<=[\w>])(?:::|->|#)(?=\w)")
"""What stands between the parts of a qualified name, where that is no dot."""

_LONGEST_TERM = 64
"""Longer runs of letters are data, such as base64: they are cut."""

_MOST_TERMS = 4096
"""Most different terms that are kept of one text."""

_QUESTION_WORDS = _listed(
    """a about all am an and any are as at be been being but by can could did do does doing for from
    had has have having how i if in into is it its just me my of on or our over should so some such
    than that the their them then there these they this those through to under up was we were what
    when where which while who whom why will with would you your"""
)
"""Words of English that say nothing of code."""


def dotted(name: str) -> str:
    """Returns a qualified name as nodes have it, of one as its language writes it: `A::b()`."""
    return _JOINT.sub(".", name).removesuffix("()")


def content_terms(text: str) -> dict[str, int]:
    """Returns the terms of a text with how often each occurs."""
    counts: Counter[str] = Counter()
    for identifier, times in Counter(_IDENTIFIER.findall(text)).items():
        for term in _split(identifier):
            counts[stem(term)] += times
    if len(counts) > _MOST_TERMS:
        return dict(counts.most_common(_MOST_TERMS))
    return dict(counts)


def query_terms(query: str) -> tuple[str, ...]:
    """Returns the different terms of a question, in order; words like `how` only alone."""
    found = _IDENTIFIER.findall(query)
    telling = [word for word in found if word.lower() not in _QUESTION_WORDS] or found
    return _terms(telling)


def name_terms(path: str, qualified_name: str) -> tuple[str, ...]:
    """Returns the different terms of a node's name and of its file's path."""
    return tuple(dict.fromkeys((*_terms_of(path), *_terms(_IDENTIFIER.findall(qualified_name)))))


@lru_cache(maxsize=128)
def _terms_of(path: str) -> tuple[str, ...]:
    """Returns the different terms of a path; a file's nodes come one after the other."""
    return _terms(_IDENTIFIER.findall(path))


def written_terms(identifier: str) -> tuple[str, ...]:
    """Returns an identifier and its words, lower case, as they are written: no stems."""
    found = _IDENTIFIER.findall(identifier)
    return tuple(dict.fromkeys(term for each in found for term in _split(each)))


def words(text: str) -> tuple[str, ...]:
    """Returns the words that identifiers in a text are made of, lower case, as they come."""
    return tuple(word for found in _IDENTIFIER.findall(text) for word in _words(found))


def stems(text: str) -> tuple[str, ...]:
    """Returns the stems of `words`."""
    return tuple(map(stem, words(text)))


def telling_words(query: str) -> tuple[str, ...]:
    """Returns the words of a question without those that say nothing of code."""
    return tuple(word for word in words(query) if word not in _QUESTION_WORDS)


def _terms(identifiers: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(stem(term) for found in identifiers for term in _split(found)))


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
    found = [identifier[slice(*word.span())].lower() for word in _WORD.finditer(shape)]
    return [piece for word in found for run in _UNSPACED_RUN.findall(word) for piece in _pairs(run)]


def is_unspaced(character: str) -> bool:
    """Tells whether a sign is of a script that has no blanks between words."""
    return bool(_UNSPACED_SIGN.match(character))


def _pairs(run: str) -> Iterable[str]:
    """Returns a word, or the pairs of signs of what has no blanks between words."""
    if len(run) <= 2 or not is_unspaced(run[0]):
        return (run,)
    return map("".join, pairwise(run))


def _shape(character: str) -> str:
    if character == "_":
        return "_"
    if character.isdigit():
        return "0"
    return "A" if character.isupper() else "a"
