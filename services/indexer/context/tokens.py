"""Estimates how many tokens a language model makes of a text, whichever model it is.

The pieces of a byte-pair vocabulary, told apart without it: letters in runs of at most eight,
capitals in runs of at most four, digits in runs of at most three, signs in pairs, other visible
characters alone, blanks in runs of at most sixteen, and one for the end of a line. A single blank
belongs to the word behind it. Vocabularies of large models join more than that in source code, so
that the estimate is rather too high than too low; ADR 26 has figures.
"""

from __future__ import annotations

import re

_PIECE = re.compile(
    r"[A-Z]?[a-z]{1,8}|[A-Z]{1,4}|[0-9]{1,3}|\n|[^\S\n]{2,16}|[^\W0-9A-Za-z_]"
    r"|[!-/:-@\[-^`{-~]{1,2}|[^\w\s]|_"
)


def estimate_tokens(text: str) -> int:
    """Returns about how many tokens a text has.

    No piece crosses the end of a line: the count of a text is the sum of those of its lines.
    """
    return sum(1 for _ in _PIECE.finditer(text))
