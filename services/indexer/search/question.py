"""Tells what kind of question is asked, and which names and terms are in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from services.indexer.search.terms import query_terms, stems, telling_words

_MOST_NAMES, _MOST_TERMS, _MOST_WORDS = 8, 128, 64
"""What is looked at of a long question, such as a pasted file."""

_SCOPE = re.compile(r"::|\.|->|#|/|\\")
_SYMBOL = re.compile(r"[$@_]?\w+(?:(?:::|\.|->|#)[$@_]?\w+)*(?:\(\))?[!?]?")
_PATH = re.compile(r"[\w.@+-]*(?:/[\w.@+-]+)+/?")
_CODE = re.compile(
    r"[{};]|=>|\w\([^)\n]{0,200}\)\s*[:{.;]|^\s*(?:def|fn|func|class|import|from|return)\s"
)
_NAME = re.compile(r"[$\w]+(?:(?:::|\.)[$\w]+)*")
_INNER_CAPITAL = re.compile(r"[a-z0-9][A-Z]|[A-Z]{2}[a-z]")

_TEST_WORDS = frozenset(stems("test testing spec fixture mock benchmark bench"))
_DOCUMENT_WORDS = frozenset(stems("doc documentation readme changelog guide tutorial"))


class QuestionKind(StrEnum):
    """How a question is put."""

    SYMBOL = "symbol"
    PATH = "path"
    CODE = "code"
    NATURAL = "natural"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, taken apart."""

    text: str
    kind: QuestionKind
    terms: tuple[str, ...]
    """What the lexical arm looks for."""

    words: tuple[str, ...]
    """Its words as they are written, lower case, without those that say nothing."""

    names: tuple[tuple[str, ...], ...]
    """Names in it that only code has, each as its parts, lower case: `Store::get` is two parts."""

    wants_tests: bool
    wants_documents: bool

    @property
    def own_names(self) -> tuple[str, ...]:
        """The last parts of its names: what definitions are called."""
        return tuple(dict.fromkeys(name[-1] for name in self.names))


def read_question(text: str) -> Question:
    """Returns a question taken apart."""
    kind = kind_of(text)
    terms = query_terms(text)[:_MOST_TERMS]
    said = set(stems(text))
    return Question(
        text=text,
        kind=kind,
        terms=terms,
        words=telling_words(text)[:_MOST_WORDS],
        names=_names(text, kind),
        wants_tests=not said.isdisjoint(_TEST_WORDS),
        wants_documents=not said.isdisjoint(_DOCUMENT_WORDS),
    )


def kind_of(text: str) -> QuestionKind:
    """Returns how a question is put: one name, one path, a piece of code, or words."""
    stripped = text.strip()
    if _PATH.fullmatch(stripped):
        return QuestionKind.PATH
    if _SYMBOL.fullmatch(stripped):
        return QuestionKind.SYMBOL
    if _CODE.search(stripped):
        return QuestionKind.CODE
    return QuestionKind.NATURAL


def _names(text: str, kind: QuestionKind) -> tuple[tuple[str, ...], ...]:
    found = [text.strip().removesuffix("()")] if kind is QuestionKind.SYMBOL else []
    if kind in {QuestionKind.CODE, QuestionKind.NATURAL}:
        found = [name for name in _NAME.findall(text) if _is_code(name)]
    parts = (
        tuple(part.strip("$@!?").lower() for part in _SCOPE.split(name) if part) for name in found
    )
    return tuple(dict.fromkeys(name for name in parts if name and name[-1]))[:_MOST_NAMES]


def _is_code(name: str) -> bool:
    """Tells whether no prose would write a word like this."""
    last = _SCOPE.split(name)[-1]
    return "::" in name or "_" in last.strip("_") or bool(_INNER_CAPITAL.search(last))
