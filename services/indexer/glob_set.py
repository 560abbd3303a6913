"""Matches paths with many globs at once, in time that no glob and no path can blow up."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from services.indexer.search.globs import Step, glob_steps, glob_to_regex

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_TRIES = 250_000
"""Times that an expression of Python may try: for each wildcard each place that those before it
leave. That many take some milliseconds; usual globs on usual paths take as good as none."""
_LONGEST_PATH = 4096
"""Characters of a path at most, by Linux."""


class GlobSet:
    """Tells whether a path is matched by one of some globs; they mean what `glob_to_regex` says."""

    def __init__(self, globs: Iterable[str]) -> None:
        self._automaton = _Automaton()
        regexes: list[re.Pattern[str]] = []
        most_wildcards = 0
        for glob in globs:
            steps = glob_steps(glob)
            most_wildcards = max(most_wildcards, sum(isinstance(step, Step) for step in steps))
            self._automaton.add(steps)
            regexes.append(re.compile(glob_to_regex(glob), re.DOTALL))
        self._regexes = tuple(regexes)
        self._longest = _longest_tried(most_wildcards)

    def __bool__(self) -> bool:
        return bool(self._regexes)

    def matches(self, path: str) -> bool:
        """Tells whether one of the globs matches a path."""
        if len(path) > self._longest:
            return self._automaton.matches(path)
        return any(regex.fullmatch(path) for regex in self._regexes)


def _longest_tried(wildcards: int) -> int:
    """Returns how long a path may be whose wildcards an expression tries as often as it may.

    It tries them in as many ways as there are to choose places for some of them.
    """
    longest = 0
    while longest < _LONGEST_PATH:
        places = longest + 2
        if math.comb(places, min(wildcards, places // 2)) > _MOST_TRIES:
            break
        longest += 1
    return longest


class _Automaton:
    """A nondeterministic automaton whose states are bits of a number (Baeza-Yates, Gonnet 1992).

    A character moves all states of all globs in a few operations on numbers. States stand in the
    order of their globs, so that a move goes to the next bit; bits of a kind are a mask each.
    """

    def __init__(self) -> None:
        self._size = 0
        self._first = 0
        self._last = 0
        self._takes: dict[str, int] = {}
        """By character: states that it moves on to the next."""
        self._takes_name = 0
        """States that any character but a slash moves on."""
        self._stays = 0
        """States that any character leaves where they are."""
        self._stays_name = 0
        """States that any character but a slash leaves where they are."""
        self._skips = 0
        """States that are the next as well, without a character."""
        self._skips_two = 0
        """States that are the one behind the next as well."""

    def add(self, steps: Iterable[Step | str]) -> None:
        """Adds the states of a glob."""
        self._first |= 1 << self._size
        for step in steps:
            match step:
                case str():
                    for character in step:
                        self._takes[character] = self._takes.get(character, 0) | self._next()
                case Step.SIGN:
                    self._takes_name |= self._next()
                case Step.NAME:
                    state = self._next()
                    self._stays_name |= state
                    self._skips |= state
                case Step.ANYTHING:
                    state = self._next()
                    self._stays |= state
                    self._skips |= state
                case Step.FOLDERS:  # none, or anything up to a slash
                    entry, inside = self._next(), self._next()
                    self._skips |= entry
                    self._skips_two |= entry
                    self._stays |= inside
                    self._takes["/"] = self._takes.get("/", 0) | inside
        self._last |= self._next()

    def _next(self) -> int:
        state = 1 << self._size
        self._size += 1
        return state

    def matches(self, path: str) -> bool:
        """Tells whether one of the globs matches a path."""
        states = self._closed(self._first)
        in_name = self._takes_name, self._stays | self._stays_name
        at_slash = 0, self._stays
        takes = self._takes.get
        for character in path:
            also, stays = at_slash if character == "/" else in_name
            states = self._closed(((states & (takes(character, 0) | also)) << 1) | (states & stays))
            if not states:
                return False
        return bool(states & self._last)

    def _closed(self, states: int) -> int:
        """Returns states with all that they are without a character."""
        while True:
            more = states | (states & self._skips) << 1 | (states & self._skips_two) << 2
            if more == states:
                return states
            states = more
