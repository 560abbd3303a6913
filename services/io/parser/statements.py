"""Code that declares nothing, as ranges, and what of it stands around a function that a call takes.

`window.addEventListener("load", function () { ... })` and `(function ($) { ... })(jQuery)` say
something before and behind the function; mere brackets do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from services.io.model import Span

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from tree_sitter import Node as Syntax

    from services.io.parser.declarations import Declaration


class Statement(NamedTuple):
    """A range of code that declares nothing; without syntax when it is a part of a statement."""

    span: Span
    syntax: Syntax | None = None

    @property
    def size(self) -> int:
        """Bytes of the range."""
        return self.span.end - self.span.start

    @classmethod
    def of(cls, node: Syntax) -> Statement:
        """Returns the statement that a node is."""
        return cls(Span(node.start_byte, node.end_byte), node)


def around(
    container: Declaration, comments: AbstractSet[str]
) -> tuple[list[Statement], list[Statement]]:
    """Returns what a call says before and behind the function in it that is a container.

    Other containers have none: their heads, as the condition of an `if`, are left out on purpose.
    """
    body, outer = container.body, container.outer
    if body is None or body is not container.inner:
        return [], []
    head, tail = Span(outer.start_byte, body.start_byte), Span(body.end_byte, outer.end_byte)
    return (
        [Statement(head)] if _has_words(outer, head, comments) else [],
        [Statement(tail)] if _has_words(outer, tail, comments) else [],
    )


def _has_words(node: Syntax, span: Span, comments: AbstractSet[str]) -> bool:
    waiting = [node]
    while waiting:
        found = waiting.pop()
        if found.end_byte <= span.start or found.start_byte >= span.end or found.type in comments:
            continue
        if found.is_named and not found.child_count:
            return True
        waiting += found.children
    return False
