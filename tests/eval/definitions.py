"""A definition of a tree, as tasks are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.eval.scoring import Target

_MOST_OF_OTHERS = 0.5
"""A result may lie outside its target by this share: a whole class is no answer for a method."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A function or type, its place in its file, and what was written of it."""

    path: str
    name: str
    first: int
    last: int
    """Lines from 1, the last one included."""
    doc: str
    is_function: bool
    is_test: bool

    @property
    def target(self) -> Target:
        """What answers a question for it."""
        return Target(self.path, self.first, self.last, _MOST_OF_OTHERS)
