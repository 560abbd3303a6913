"""Calls a service again while it does not answer, for a time that is bounded."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, TypeVar

from services.indexer.errors import DATABASE
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 2.0


class Patience:
    """A budget of time for a dependency to come back.

    The waiting work keeps what it holds: a service that is restarted costs a wait, no attempt.
    """

    def __init__(self, budget_seconds: float) -> None:
        self._budget_seconds = budget_seconds

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Returns what `work` returns; `work` must be safe to call again.

        The budget runs from the first failure: a call that went well for long owes nothing.

        Raises:
            DependencyUnavailableError: the dependency did not answer within the budget, or it is
                the database, for which no run waits: it would not know what was committed.
        """
        deadline = None
        wait_seconds = _FIRST_WAIT_SECONDS
        while True:
            try:
                return await work()
            except DependencyUnavailableError as error:
                if error.metadata.get("dependency") == DATABASE:
                    raise  # the run begins again once it is back
                pause = max(wait_seconds * random.uniform(0.5, 1.5), error.retry_after_seconds or 0)  # noqa: S311 - spreads retries
                now = time.monotonic()
                deadline = deadline or now + self._budget_seconds
                if now + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            wait_seconds = min(_LONGEST_WAIT_SECONDS, wait_seconds * 2)
