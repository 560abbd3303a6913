"""A process that watches a folder and prints what it is told, a line of JSON for each message."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing

from services.io.model import Root, SymlinkPolicy
from services.io.origins import Origins
from services.io.roots import Roots
from services.io.watch.model import WatchOptions
from services.io.watch.stream import tell
from services.io.watch.watchers import Watchers
from services.runtime import log
from tests.unit.io.watching import RULES


async def main(top: str) -> None:
    """Watches until it is killed."""
    log.configure("io", "error", "json")
    roots = Roots([Root("test", top, SymlinkPolicy.DENY)])
    options = WatchOptions(quiet_seconds=0.02, rescan_seconds=0.2)
    watchers = Watchers(roots.open_tree, RULES, Origins(), options)
    async with (
        watchers.subscribe("roots/test", "") as subscription,
        aclosing(tell(subscription, "", "", 3600)) as messages,
    ):
        async for message in messages:
            events = [[event.type.value, event.path] for event in message.events]
            sys.stdout.write(json.dumps(events) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
