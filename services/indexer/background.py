"""What an indexer does beside answering calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.dispatcher import Dispatcher
    from services.indexer.live.watches import LiveWatches
    from services.indexer.upkeep import Upkeep


@dataclass(frozen=True, slots=True)
class Background:
    """Runs, watches of live workspaces, and upkeep of the database."""

    dispatcher: Dispatcher
    watches: LiveWatches
    upkeep: Sequence[Upkeep]

    def start(self) -> None:
        """Begins all of it; the database is open and has the schema."""
        self.dispatcher.start()
        self.watches.start()
        for upkeep in self.upkeep:
            upkeep.start()

    async def stop(self) -> None:
        """Gives live workspaces and unfinished runs back, and ends the rest."""
        await self.watches.stop()
        await self.dispatcher.stop()
        for upkeep in self.upkeep:
            await upkeep.stop()
