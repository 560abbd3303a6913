"""Gathers changes of a tree until a run over them is due: plain data, the clock is a parameter.

All moments are seconds of one monotonic clock.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.run_spec import RunTrigger

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIRST_REST_SECONDS = 1.0
_LONGEST_REST_SECONDS = 60.0
_MOST_NOTED = 1024
"""Most changes whose moments are kept, of a batch over the whole tree: the oldest ones."""


@dataclass(frozen=True, slots=True)
class GatherRules:
    """When a run is due."""

    debounce_seconds: float
    """Quiet time after a change."""
    max_wait_seconds: float
    """Longest time from a change to its run, however many others come."""
    max_paths: int
    """Paths of one run; more are a run over the whole tree."""
    reconcile_seconds: float
    """Time from one look through the whole tree to the next."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one run is to cover."""

    paths: tuple[str, ...]
    """In order; empty for the whole tree."""
    noted: tuple[float, ...]
    """When each of the changes happened, the oldest first."""
    is_scheduled: bool = False
    """Whether only its time came: no change is known."""

    @property
    def trigger(self) -> RunTrigger:
        """Why its run is made."""
        return RunTrigger.CHANGES if self.paths else RunTrigger.RECONCILE


class Gatherer:
    """Decides which runs a watcher makes, and when.

    One batch is out at a time: what comes meanwhile gathers for the next. A batch that failed is
    followed by one over the whole tree.

    Args:
        rules: when a run is due.
        reconcile_at: when the next look through the whole tree is due.
    """

    def __init__(self, rules: GatherRules, reconcile_at: float) -> None:
        self._rules = rules
        self._reconcile_at = reconcile_at
        self._changed: dict[str, float] = {}
        """When each path changed first since the last batch."""
        self._noted: list[float] = []
        """The same for a batch over the whole tree, which names no paths."""
        self._whole = False
        self._first: float | None = None
        self._last = 0.0
        self._rest_seconds = 0.0
        self._not_before = 0.0
        self._out: Batch | None = None

    def add(self, paths: Iterable[str], noted: float, now: float) -> None:
        """Takes in a change of some paths, as of the moment `noted`, told at `now`."""
        self._touch(now)
        if self._whole:
            self._note([noted])
            return
        for path in paths:
            self._changed[path] = min(noted, self._changed.get(path, noted))
        if len(self._changed) > self._rules.max_paths:
            self._make_whole()

    def rescan(self, now: float) -> None:
        """Takes in that changes may have been missed."""
        self._touch(now)
        self._make_whole()

    def forget(self) -> None:
        """Drops what was gathered: there is no tree that it could be looked for in."""
        self._changed.clear()
        self._noted.clear()
        self._whole, self._first = False, None

    def due_at(self) -> float | None:
        """Returns when the next batch may be taken; None while one is out."""
        if self._out is not None:
            return None
        due = self._reconcile_at
        if self._first is not None:
            settled = self._last + self._rules.debounce_seconds
            due = min(due, settled, self._first + self._rules.max_wait_seconds)
        return max(due, self._not_before)

    def take(self, now: float) -> Batch | None:
        """Returns the batch that is due, if one is; it is out until it ended or came back."""
        due = self.due_at()
        if due is None or due > now:
            return None
        if self._whole:
            batch = Batch((), tuple(heapq.nsmallest(_MOST_NOTED, self._noted)))
            self.forget()
        elif now >= self._reconcile_at:
            batch = Batch((), (), is_scheduled=True)  # what changed gathers on
        else:
            batch = Batch(tuple(sorted(self._changed)), tuple(sorted(self._changed.values())))
            self.forget()
        self._out = batch
        return batch

    def ended(self, now: float, *, others_wait: bool = False) -> None:
        """Tells that the batch is indexed.

        Args:
            now: the moment.
            others_wait: whether a run over the whole workspace was kept waiting: then the next
                batch rests, longer each time, so that the other run comes to its end.
        """
        assert self._out is not None
        if not self._out.paths:
            self._reconcile_at = now + self._rules.reconcile_seconds
        self._out = None
        self._rest(now, rests=others_wait)

    def failed(self, now: float) -> None:
        """Tells that the batch is not indexed, or not known to be."""
        assert self._out is not None
        scheduled, noted = self._out.is_scheduled, self._out.noted
        self._out = None
        self._rest(now, rests=True)
        if scheduled:
            self._look_later(now)
            return
        self._touch(now)
        self._make_whole()
        self._note(noted)

    def put_off(self, now: float) -> None:
        """Tells that the batch cannot be queued now, and nothing of it was: it is taken again."""
        assert self._out is not None
        out, self._out = self._out, None
        if out.is_scheduled:
            self._look_later(now)
            return
        self._rest(now, rests=True)
        if out.paths and not self._whole:
            self._touch(now)
            for path in out.paths:
                self._changed[path] = min(out.noted[0], self._changed.get(path, now))
            if len(self._changed) > self._rules.max_paths:
                self._make_whole()
        else:
            self.rescan(now)
            self._note(out.noted)

    def _look_later(self, now: float) -> None:
        """Changes are not to wait for what a look waits for, such as a run that is paused."""
        self._reconcile_at = now + min(_LONGEST_REST_SECONDS, self._rules.reconcile_seconds)

    def _touch(self, now: float) -> None:
        self._first = now if self._first is None else self._first
        self._last = now

    def _make_whole(self) -> None:
        self._whole = True
        self._note(self._changed.values())
        self._changed.clear()

    def _note(self, noted: Iterable[float]) -> None:
        self._noted += noted
        if len(self._noted) > 2 * _MOST_NOTED:
            self._noted = heapq.nsmallest(_MOST_NOTED, self._noted)

    def _rest(self, now: float, *, rests: bool) -> None:
        longer = min(_LONGEST_REST_SECONDS, 2 * self._rest_seconds or _FIRST_REST_SECONDS)
        self._rest_seconds = longer if rests else 0.0
        self._not_before = now + self._rest_seconds
