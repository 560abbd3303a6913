"""Chooses at first start how many forwards run at once on a CPU, by measuring."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.embed.backends import cpu
from services.embed.backends.measured import keep_measured
from services.embed.fingerprint import digest_of_json
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from services.embed.backends.protocol import Backend
    from services.embed.model import Precision, TokenIds

_ROUNDS = 3
_ROUND_SECONDS = 0.4
_MOST_CANDIDATES = 3
"""With the rounds this bounds the measurement to four seconds, and the compiling to as many."""
_LEAST_GAIN = 1.05
"""What another layout must win by in each round: less, or once, is the noise of a machine that is
shared."""
_TEXT_TOKENS = 128
"""Length of the texts that are measured with: that of a function."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Forwards at once, and the threads of all of them together."""

    streams: int
    threads: int


def usual_layout(cores: int) -> Layout:
    """Returns one stream a core, which is best on most machines."""
    streams = min(cores, cpu.MOST_STREAMS)
    return Layout(streams, max(cores, streams))


def choose_layout(
    compile_with: Callable[[Layout], Backend],
    *,
    usual: Layout,
    precision: Precision,
    some_ids: TokenIds,
    folder: Path,
) -> Layout:
    """Returns the layout with the highest rate; measured once per model and kind of machine.

    `some_ids` are ids of an ordinary text. The usual layout stays unless another one is clearly
    faster. What was measured is kept in `folder`.
    """
    candidates = _candidates(usual)
    if len(candidates) == 1:
        return candidates[0]
    kind = digest_of_json([cpu.model_name(), asdict(usual), str(precision)])[:16]
    memory = folder / f"layout-{kind}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Layout(**json.loads(memory.read_text())["layout"])
    rates = _rates(compile_with, candidates, some_ids)
    best = clear_winner(usual, rates)
    measured = {f"{one.streams}x{one.threads}": round(max(rates[one]), 1) for one in candidates}
    get_logger().info(
        "layout_measured", streams=best.streams, threads=best.threads, batches_per_second=measured
    )
    keep_measured(memory, {"layout": asdict(best), "batches_per_second": measured})
    return best


def clear_winner(usual: Layout, rates: Mapping[Layout, Sequence[float]]) -> Layout:
    """Returns the layout that wins clearly in each round; the usual one when none does."""

    def least_gain(layout: Layout) -> float:
        return min(rate / other for rate, other in zip(rates[layout], rates[usual], strict=True))

    best = max(rates, key=least_gain)
    return best if least_gain(best) >= _LEAST_GAIN else usual


def _candidates(usual: Layout) -> Sequence[Layout]:
    """Returns the usual layout and ones with fewer streams of more threads each."""
    fewer = (usual.streams // 2, usual.streams // 4)
    others = [Layout(streams, usual.threads) for streams in fewer if streams >= 1]
    return [usual, *others][:_MOST_CANDIDATES]


def _rates(
    compile_with: Callable[[Layout], Backend], candidates: Sequence[Layout], some_ids: TokenIds
) -> dict[Layout, list[float]]:
    """Returns the rates of each in batches a second, by round; in a round all take turns."""
    backends = {layout: compile_with(layout) for layout in candidates}
    rates: dict[Layout, list[float]] = {layout: [] for layout in candidates}
    try:
        for _ in range(_ROUNDS):
            for layout, backend in backends.items():
                rates[layout].append(_rate(backend, some_ids))
    finally:
        for backend in backends.values():
            backend.close()
    return rates


def _rate(backend: Backend, some_ids: TokenIds) -> float:
    """Returns batches a second when every stream is busy."""
    info = backend.info
    text = np.resize(some_ids, min(_TEXT_TOKENS, info.identity.max_tokens))
    batch = [text] * max(1, info.token_budget // len(text))
    backend.infer(batch[:1])
    with ThreadPoolExecutor(info.concurrency) as streams:
        started = time.perf_counter()
        deadline = started + _ROUND_SECONDS

        def run() -> int:
            done = 0
            while time.perf_counter() < deadline:
                backend.infer(batch)
                done += 1
            return done

        done = sum(one.result() for one in [streams.submit(run) for _ in range(info.concurrency)])
        return done / (time.perf_counter() - started)
