"""How many bytes of text are in flight at once is a setting, whatever a claim holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.integration.hooks import Hook
from tests.integration.indexing import indexing
from tests.integration.oracle import check
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LIMIT = 1024
_NODES = 120


class _Meter(Hook):
    """Counts the bytes of texts that the embed service has at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0

    async def before(self, texts: Sequence[str], context: Any) -> None:
        await super().before(texts, context)
        size = sum(len(text.encode()) for text in texts)
        self.held += size
        self.most = max(self.most, self.held)
        await asyncio.sleep(0.02)  # others may come meanwhile
        self.held -= size


async def test_claims_together_have_no_more_bytes_in_flight_than_the_setting(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Four claims of sixteen nodes are 4 KiB. Red when claims wait for no bytes, or go whole."""
    write_many(roots / "tree", _NODES, per_file=20)
    long = "\n".join(f"    value = value * {number} + 1" for number in range(60))
    (roots / "tree" / "long.py").write_text(f"def long(value):\n{long}\n    return value\n")
    meter = _Meter()
    async with indexing(
        roots,
        sockets,
        migrated_url,
        embed=meter.app,
        embed_batch_nodes=16,
        embed_batches_in_flight=4,
        embed_bytes_in_flight=_LIMIT,
    ) as services:
        await services.create("tree", "tree")
        progress = await services.succeed("tree")
        await check(services, "tree", "tree")

    sizes = [sum(len(text.encode()) for text in call) for call in meter.calls]
    alone = [call for call, size in zip(meter.calls, sizes, strict=True) if size > _LIMIT]
    longest = max(len(text.encode()) for text in meter.texts)
    assert progress.forwards == len(meter.texts) > _NODES
    assert all(len(call) == 1 for call in alone)
    assert longest > _LIMIT, "a text that goes alone"
    assert _LIMIT / 2 < meter.most <= max(_LIMIT, longest)
