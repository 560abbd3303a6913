"""Budgets of tokens times streams: whether the setting that was chosen is near the best.

All settings take turns on the same node texts, packed as the service packs them, so that only
ratios within a round count. The best of many is one that was lucky as well, so that it runs against
the chosen one in rounds of their own, and these alone say how far apart the two are.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.embed.backends.converted import ensure_converted
from services.embed.backends.openvino import load_openvino
from services.embed.settings import EmbedSettings
from services.embed.sources import FolderSource, resolve_source
from tests.bench.corpus import cached_texts
from tests.bench.embed_packing import encoded_items, packed, padding_share, seconds_to_run
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.embed.backends.protocol import LoadedModel

_TEXTS = 320
_ROUNDS = 5
_ROUNDS_OF_TWO = 10
_BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
_GOAL = 0.95


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns how the chosen setting does against the best; takes about three minutes."""
    texts = cached_texts(scratch, _TEXTS)
    cores = len(os.sched_getaffinity(0))
    chosen = _load(scratch, streams=0)
    info = chosen.backend.info
    engines = {
        streams: _load(scratch, streams=streams) for streams in sorted({1, cores, 2 * cores})
    }
    items = encoded_items(chosen.encoder, texts)
    budgets = sorted({*_BUDGETS, info.token_budget})
    settings = list(product(engines, budgets))
    plans = {budget: packed(items, budget) for budget in budgets}
    tokens = sum(item.tokens for item in items)
    rates: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for _ in range(_ROUNDS):
        for streams, budget in settings:
            seconds = seconds_to_run(engines[streams].backend, plans[budget])
            rates[streams, budget].append(tokens / seconds)
    for streams, budget in settings:
        batches = plans[budget]
        rate = statistics.median(rates[streams, budget])
        say(
            f"  streams {streams}, budget {budget}: {rate:.0f} tokens/s, "
            f"{len(items) / len(batches):.1f} texts a batch, padding {padding_share(batches):.3f}"
        )
    mine = rates[info.concurrency, info.token_budget]
    against = {
        setting: statistics.median(a / b for a, b in zip(mine, others, strict=True))
        for setting, others in rates.items()
    }
    best = min(against, key=lambda setting: against[setting])
    say(
        f"chosen {info.concurrency} x {info.token_budget}, best {best[0]} x {best[1]}: "
        f"{against[best]:.3f} of it while all took turns"
    )
    share, low, high = _share(
        lambda: seconds_to_run(engines[info.concurrency].backend, plans[info.token_budget]),
        lambda: seconds_to_run(engines[best[0]].backend, plans[best[1]]),
    )
    say(f"  {share:.3f} ({low:.3f} to {high:.3f}) in rounds of these two")
    for one in (chosen, *engines.values()):
        one.backend.close()
    return {
        "embed_sweep_chosen_to_best": figure(share, _GOAL, met=share >= _GOAL),
        "embed_sweep_chosen_streams": figure(info.concurrency),
        "embed_sweep_chosen_budget": figure(info.token_budget),
        "embed_sweep_best_streams": figure(best[0]),
        "embed_sweep_best_budget": figure(best[1]),
    }


def _share(chosen: Callable[[], float], best: Callable[[], float]) -> tuple[float, float, float]:
    """Returns the chosen one's rate to the best one's: median, least and most of the rounds.

    Each runs for some seconds and returns how many. Who goes first changes from round to round.
    """
    shares = []
    for number in range(_ROUNDS_OF_TWO):
        if number % 2:
            of_best, of_chosen = best(), chosen()
        else:
            of_chosen, of_best = chosen(), best()
        shares.append(of_best / of_chosen)
    return statistics.median(shares), min(shares), max(shares)


def _load(scratch: Path, *, streams: int) -> LoadedModel:
    """Returns the bundled model on OpenVINO; 0 streams have it measure, as a first start does."""
    settings = EmbedSettings(cache_dir=scratch / "models")
    source = resolve_source(settings)
    assert isinstance(source, FolderSource)
    folder = asyncio.run(
        ensure_converted(
            source.folder,
            cache_dir=settings.cache_dir,
            model_id=source.model_id,
            timeout_seconds=settings.convert_timeout_seconds,
        )
    )
    return load_openvino(
        folder,
        precision=settings.precision,
        streams=streams,
        threads=0,
        token_budget=0,
        max_text_chars=settings.max_text_chars,
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch_folder:
        sys.stdout.write(json.dumps(measure(Path(scratch_folder))) + "\n")
