"""Tells what kind of question is asked, and which names and terms are in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from services.indexer.search.asides import Aside, spoken_of
from services.indexer.search.terms import query_terms, stems, telling_words, words

_MOST_NAMES, _MOST_TERMS, _MOST_WORDS = 8, 128, 64
"""What is looked at of a long question, such as a pasted file."""

NAME_MARKS = "$@!?"
"""What languages put before and after names, and a question may leave out."""

_SCOPE = re.compile(r"::|\.|->|#|/|\\")
_SYMBOL = re.compile(r"[$@]?\w+(?:(?:::|\.|->|#)[$@]?\w+)*(?:\(\))?[!?]?")
_PATH = re.compile(r"[\w.@+-]*(?:/[\w.@+-]+)+/?|[\w.@+-]+/")
_PLACE = re.compile(rf"((?:[\w.@+-]*/)+[\w.@+-]+\.\w+)(?:\s+|::?)((?!\d){_SYMBOL.pattern})")
"""A file and a name in it, as tools and people write them: `src/app.py::Flask::run`."""

_WRITTEN_PATH = re.compile(
    r"(?:[A-Za-z]:(?=[/\\]))?((?:(?<=:)[/\\]|/)?(?:[\w.@+-]+[/\\])*[\w@+-][\w.@+-]*\.\w+)(.*)",
    re.DOTALL,
)
_LINE = re.compile(r"(?::\d+(?:[:-]\d+)*:?|\#L\d+(?:-L?\d+)?)?\Z")
"""What tools write behind a file to say where in it: `app.py:12:7`, `app.py#L12-L20`."""

_CHOICE = re.compile(r"[A-Za-z]+/[A-Za-z]+")
"""`read/write`, `TCP/IP`: prose writes so too, and what is called so is found by its words."""

_CODE = re.compile(
    r"""
    [{};][ \t]*$ | ;[^;\n]{1,200};                      # as lines of code end, and heads of loops
    | \{[^{}\n]{0,200}[;:,=(][^{}\n]{0,200}\}           # a block or an object on one line
    | => | [^=\s]\s(?:==|!=|:=|&&|\|\||[-+*/%]=)\s\S     # operators that prose has not
    | \w\([^)\n]{0,200}\)\s*[:{.;]                      # a call, or a head, that goes on
    | ^[ \t]*@[\w.]+\(                                  # a decorator
    | ^[ \t]*(?:(?:async|export|pub|public|private|protected|static|abstract|final)[ ]+)*
      (?:def|fn|func|fun|function|class|struct|interface|trait|impl|enum)[ ]+[\w.$]+\s*[(:{<]
    | ^[ \t]*(?:for|while|if|elif|try|with|except)\b[^\n]{0,200}:[ \t]*$
    | ^[ \t]*(?:let|const|var|val)?[ ]*[\w.$\[\]]+(?::[ ]*\w+)?[ ]=[ ]\S
    | ^[ \t]*import[ ]+[\w.*{}"'<>/@-]+(?:,[ ]*[\w.]+)*(?:[ ]as[ ]\w+)?[ \t]*$
    | ^[ \t]*import[ ][^\n]{0,200}[ ]from[ ]["']
    | ^[ \t]*from[ ][\w.]+[ ]import[ ]
    | ^[ \t]*(?:\#[ ]*include|using|package|require)\s*[<"'(]
    | ^[ \t]*return[ ]+[\w.$]+[(\[.][\w)\]"']
    """,
    re.VERBOSE | re.MULTILINE,
)
"""What only code has: a keyword alone begins sentences too."""

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

    path: str
    """What of it may be a path: what stands before the name, if it is a place, else all."""

    is_word: bool
    """Whether it is one word that prose has too: it may name something, or speak of it."""

    wants_tests: bool
    wants_documents: bool
    wants_aside: frozenset[Aside]
    """Kinds of files beside the main code that it speaks of."""

    @property
    def own_names(self) -> tuple[str, ...]:
        """The last parts of its names: what definitions are called."""
        return tuple(dict.fromkeys(name[-1] for name in self.names))

    @property
    def spelled_names(self) -> tuple[str, ...]:
        """The same as a definition may be spelled: Ruby's `save!` and `valid?` are names too."""
        return tuple(f"{name}{end}" for name in self.own_names for end in ("", "!", "?"))


def read_question(text: str) -> Question:
    """Returns a question taken apart."""
    text = _plain_path(text)
    kind = kind_of(text)
    path, name = _place(text)
    terms = query_terms(text)[:_MOST_TERMS]
    said = set(stems(text))
    return Question(
        text=text,
        kind=kind,
        terms=terms,
        words=telling_words(text)[:_MOST_WORDS],
        names=_names(name, kind),
        path=path,
        is_word=kind is QuestionKind.SYMBOL and text.strip().isalpha() and not _is_code(text),
        wants_tests=not said.isdisjoint(_TEST_WORDS),
        wants_documents=not said.isdisjoint(_DOCUMENT_WORDS),
        wants_aside=spoken_of(words(text)),
    )


def kind_of(text: str) -> QuestionKind:
    """Returns how a question is put: one name, also in a file, one path, code, or words."""
    stripped = text.strip()
    if _PATH.fullmatch(stripped) and not _CHOICE.fullmatch(stripped):
        return QuestionKind.PATH
    if _SYMBOL.fullmatch(stripped) or _PLACE.fullmatch(stripped):
        return QuestionKind.SYMBOL
    if _CODE.search(stripped):
        return QuestionKind.CODE
    return QuestionKind.NATURAL


def _plain_path(text: str) -> str:
    """Returns a question with the file that it begins with as a tree has it.

    That is without a drive and with slashes, and without the line that tools write behind it.
    """
    written = _WRITTEN_PATH.fullmatch(text.strip())
    if written is None:
        return text
    path, rest = written[1].replace("\\", "/"), written[2]
    return f"{path}{'' if _LINE.fullmatch(rest) else rest}"


def _place(text: str) -> tuple[str, str]:
    """Returns the path and the name of a question; either is all of one that is no place."""
    stripped = text.strip()
    place = _PLACE.fullmatch(stripped)
    return (place[1], place[2]) if place else (stripped, stripped)


def _names(text: str, kind: QuestionKind) -> tuple[tuple[str, ...], ...]:
    found = [text.removesuffix("()")] if kind is QuestionKind.SYMBOL else []
    if kind in {QuestionKind.CODE, QuestionKind.NATURAL}:
        found = [name for name in _NAME.findall(text) if _is_code(name)]
    parts = (
        tuple(part.strip(NAME_MARKS).lower() for part in _SCOPE.split(name) if part)
        for name in found
    )
    return tuple(dict.fromkeys(name for name in parts if name and name[-1]))[:_MOST_NAMES]


def _is_code(name: str) -> bool:
    """Tells whether no prose would write a word like this."""
    last = _SCOPE.split(name)[-1]
    return "::" in name or "_" in last.strip("_") or bool(_INNER_CAPITAL.search(last))
