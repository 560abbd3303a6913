"""Batches packed by length against batches in order of arrival, in one engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.embed.hosting.loading import load_hosted
from services.embed.model import EncodedText, Truncation
from services.embed.packing import PackingQueue
from services.embed.settings import EmbedSettings
from services.embed.sources import resolve_source
from tests.bench.corpus import cached_texts
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.backends.protocol import Backend, LoadedModel, TextEncoder
    from services.embed.model import TokenIds

_TEXTS = 1024
_ROUNDS = 7
_WAITING_TEXTS = 256
"""Texts that wait at any time: four requests of 64."""
_GOAL = 1.5


@dataclass(frozen=True, slots=True)
class Item:
    """A text as token ids, for a queue."""

    serial: int
    ids: TokenIds
    route: str = ""
    caller: str = ""

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return len(self.ids)


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns rates of useful tokens as ratios; takes about a minute and a half."""
    return asyncio.run(_measure(scratch, cached_texts(scratch, _TEXTS)))


async def _measure(scratch: Path, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    settings = EmbedSettings(cache_dir=scratch / "models")
    loaded = await load_hosted(resolve_source(settings), settings, lambda _serving: None)
    try:
        return await asyncio.to_thread(_compare, loaded, texts)
    finally:
        await asyncio.to_thread(loaded.backend.close)


def _compare(loaded: LoadedModel, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    items = encoded_items(loaded.encoder, texts)
    plans = {
        "fifo_8": _in_order(items, 8),
        "fifo_32": _in_order(items, 32),
        "packed": packed(items, loaded.backend.info.token_budget),
    }
    useful = sum(item.tokens for item in items)
    rates: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(_ROUNDS):
        for name, batches in plans.items():
            rates[name].append(useful / seconds_to_run(loaded.backend, batches))
    median = {name: round(statistics.median(values)) for name, values in rates.items()}
    say(f"packing: useful tokens/s {json.dumps(median)}")
    results: dict[str, dict[str, Any]] = {}
    for name in ("fifo_8", "fifo_32"):
        ratios = [a / b for a, b in zip(rates["packed"], rates[name], strict=True)]
        ratio = statistics.median(ratios)
        results |= {
            f"embed_packed_to_{name}": figure(ratio, _GOAL, met=ratio >= _GOAL),
            f"embed_packed_to_{name}_least": figure(min(ratios)),
            f"embed_packed_to_{name}_most": figure(max(ratios)),
            f"embed_{name}_padding_share": figure(padding_share(plans[name])),
        }
    return results | {
        "embed_padding_share": figure(padding_share(plans["packed"])),
        "embed_batch_texts": figure(len(items) / len(plans["packed"])),
    }


def encoded_items(encoder: TextEncoder, texts: Sequence[str]) -> list[Item]:
    """Returns texts as token ids, in order."""
    encoded = encoder.encode(texts, Truncation.END)
    return [
        Item(serial, item.ids)
        for serial, item in enumerate(encoded)
        if isinstance(item, EncodedText)
    ]


def packed(items: Sequence[Item], token_budget: int) -> list[list[Item]]:
    """Returns batches as the service makes them while some requests wait at any time."""
    queue: PackingQueue[Item] = PackingQueue()
    waiting = iter(items)
    batches: list[list[Item]] = []
    while True:
        for item in itertools.islice(waiting, max(0, _WAITING_TEXTS - len(queue))):
            queue.add(item)
        if not queue:
            return batches
        batches.append(queue.take(token_budget=token_budget, max_items=256))


def padding_share(batches: Sequence[Sequence[Item]]) -> float:
    """Returns the share of all tokens that go through the model which is padding."""
    useful = sum(item.tokens for batch in batches for item in batch)
    return 1 - useful / sum(max(item.tokens for item in batch) * len(batch) for batch in batches)


def seconds_to_run(backend: Backend, batches: Sequence[Sequence[Item]]) -> float:
    """Returns how long an engine takes for batches with all of its streams busy."""
    started = time.perf_counter()
    with ThreadPoolExecutor(backend.info.concurrency) as threads:
        list(threads.map(lambda batch: backend.infer([item.ids for item in batch]), batches))
    return time.perf_counter() - started


def _in_order(items: Sequence[Item], size: int) -> list[list[Item]]:
    return [list(items[at : at + size]) for at in range(0, len(items), size)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(Path(folder))) + "\n")
