"""Adds up whether the engines of all models serve, and tells the server's health."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.embed.model import ModelId


class EngineHealth:
    """Knows which models have lost their engine; made on the event loop."""

    def __init__(self) -> None:
        self._away: set[ModelId] = set()
        self._tell: Callable[[bool], None] = lambda _serving: None

    def report_to(self, tell: Callable[[bool], None]) -> None:
        """Has `tell` called on the loop with whether all engines serve, now and at each change."""
        self._tell = tell
        tell(not self._away)

    def teller_of(self, model_id: ModelId) -> Callable[[bool], None]:
        """Returns what the engine of a model calls, from any thread."""
        return partial(self._hand_over, asyncio.get_running_loop(), model_id)

    def _hand_over(
        self,
        loop: asyncio.AbstractEventLoop,
        model_id: ModelId,
        serving: bool,  # noqa: FBT001 - a callback's one argument
        /,
    ) -> None:
        with contextlib.suppress(RuntimeError):  # a closed loop has nobody left to tell
            loop.call_soon_threadsafe(self._note, model_id, serving)

    def _note(self, model_id: ModelId, serving: bool, /) -> None:  # noqa: FBT001 - as above
        if serving:
            self._away.discard(model_id)
        else:
            self._away.add(model_id)
        self._tell(not self._away)
