"""Questions that an index answers by itself: what a node's comment or its name says."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LEAST_WORDS = 4
"""A shorter comment says too little to find its node by."""

_MOST_CHARACTERS = 300
_DOCSTRING = re.compile(r'^\s*[rRuU]?("""|\'\'\')(.+?)\1', re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"/\*+(.+?)\*/", re.DOTALL)
_LINES = re.compile(r"(?:^[ \t]*(?:///?|#(?!!)|--|;;)[^\n]*(?:\n|$))+", re.MULTILINE)
_MARKS = re.compile(r"^[ \t]*(?:///?!?|#+|--+|;;+|\*+)?[ \t]?", re.MULTILINE)
_WORDS = re.compile(r"[^\W\d_]{2,}")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and whether it is a comment: else it is the words of a name."""

    text: str
    is_comment: bool


def question_of(text: str, qualified_name: str) -> Question | None:
    """Returns what to ask for a node: its first comment, else its name in words, else None."""
    for pattern, group in ((_DOCSTRING, 2), (_BLOCK, 1), (_LINES, 0)):
        if (match := pattern.search(text)) is not None:
            comment = " ".join(_MARKS.sub("", match[group]).split())
            if len(_WORDS.findall(comment)) >= _LEAST_WORDS:
                return Question(comment[:_MOST_CHARACTERS], is_comment=True)
    words = _PARTS.findall(qualified_name)
    if len(words) < 2:
        return None
    return Question(" ".join(word.lower() for word in words), is_comment=False)
