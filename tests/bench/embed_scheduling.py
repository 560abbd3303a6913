"""Lanes, shedding and isolation of the embed service, each against doing without it.

Everything runs in this process around one engine with the real model, so that only the scheduling
differs. Ratios within a run are what counts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.embed.app import EmbedApp
from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.backends.protocol import AlwaysUp, Backend, LoadedModel
from services.embed.hosting.loading import load_hosted
from services.embed.model import (
    Embedding,
    EmbedOptions,
    EncodedText,
    Lane,
    Purpose,
    Truncation,
)
from services.embed.settings import EmbedSettings
from services.embed.sources import resolve_source
from services.embed.specs import specs_of
from services.runtime.errors import LodestoneError
from tests.bench.corpus import cached_texts
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from services.embed.model import TokenIds, Vectors
    from services.embed.serving import ServedModel

_BULK = EmbedOptions(purpose=Purpose.DOCUMENT, truncation=Truncation.END, lane=Lane.BULK)
_QUERY = EmbedOptions(purpose=Purpose.QUERY, truncation=Truncation.END, lane=Lane.INTERACTIVE)
_TEXTS = 1024
_ROUNDS = 7
_REQUEST_TEXTS = 64
_SATURATING = 12
"""Requests of bulk work that are always in flight."""
_LANE_SECONDS = 6.0
_OVERLOAD_SECONDS = 12.0
"""A queue that takes all answers in time what comes in the first `_DEADLINE_SECONDS`, which it is
done with after twice that; later nothing. What shedding gains grows with this time: at best to
`_OVERLOAD_SECONDS / (2 * _DEADLINE_SECONDS)`."""
_DEADLINE_SECONDS = 2.0
_BAD = "unspeakable"


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns all figures; takes about six minutes."""
    texts = cached_texts(scratch, _TEXTS * 4)
    results = asyncio.run(_measure(scratch, texts))
    results |= asyncio.run(_isolation(texts[: 256 * 4]))
    return results


async def _measure(scratch: Path, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    settings = EmbedSettings(cache_dir=scratch / "models")
    loaded = await load_hosted(resolve_source(settings), settings, lambda _serving: None)
    try:
        results = await _lanes(loaded, texts)
        results |= await _overload(loaded, texts)
    finally:
        await asyncio.to_thread(loaded.backend.close)
    return results


@asynccontextmanager
async def _served(
    loaded: LoadedModel, count: Callable[[int, int], None], **fields: Any
) -> AsyncIterator[ServedModel]:
    """Yields a model with a queue of its own over an engine that outlives it."""
    settings = EmbedSettings(**fields)
    app = EmbedApp(settings)
    (spec,) = specs_of(settings)
    model = app.serve(LoadedModel(_Kept(loaded.backend, count), loaded.encoder), spec)
    try:
        yield model
    finally:
        await model.close()
        await app.close()


class _Kept(AlwaysUp):
    """A backend that stays when the model over it is closed; tells the texts and tokens it ran."""

    def __init__(self, backend: Backend, count: Callable[[int, int], None]) -> None:
        self._backend = backend
        self._count = count
        self.info = backend.info

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        rows = self._backend.infer(batch)
        self._count(len(batch), sum(map(len, batch)))
        return rows

    def close(self) -> None:
        """Keeps the engine."""


# Lanes


async def _lanes(loaded: LoadedModel, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    ways = {"alone": None, "one_queue": replace(_QUERY, lane=Lane.BULK), "two_lanes": _QUERY}
    runs: dict[str, list[_Mixed]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, query in ways.items():
            runs[name].append(await _bulk_and_queries(loaded, texts, query))
    p99 = {name: statistics.median(run.p99_seconds for run in runs[name]) for name in ways}
    one, two, alone = runs["one_queue"], runs["two_lanes"], runs["alone"]
    gains = [a.p99_seconds / b.p99_seconds for a, b in zip(one, two, strict=True)]
    all_kept = [a.bulk_per_second / b.bulk_per_second for a, b in zip(two, alone, strict=True)]
    gain, kept = statistics.median(gains), statistics.median(all_kept)
    say(
        f"lanes: p99 {p99['one_queue'] * 1e3:.0f} ms in one queue, "
        f"{p99['two_lanes'] * 1e3:.0f} ms in its own; bulk {kept:.2f} of alone"
    )
    return {
        "embed_lane_p99_gain": figure(gain, 10.0, met=gain >= 10.0),
        "embed_lane_p99_gain_least": figure(min(gains)),
        "embed_lane_p99_gain_most": figure(max(gains)),
        "embed_lane_query_p99_ms": figure(p99["two_lanes"] * 1e3),
        "embed_lane_bulk_kept": figure(kept, 0.9, met=kept >= 0.9),
        "embed_lane_bulk_kept_least": figure(min(all_kept)),
    }


@dataclass(frozen=True, slots=True)
class _Mixed:
    bulk_per_second: float
    p99_seconds: float


async def _bulk_and_queries(
    loaded: LoadedModel, texts: Sequence[str], query: EmbedOptions | None
) -> _Mixed:
    """Keeps the queue full of bulk work, and asks one question after the other beside it."""
    times: list[float] = []
    forwards: list[int] = []
    ends = time.monotonic() + _LANE_SECONDS

    def count(texts_run: int, _tokens: int) -> None:
        # Calls that are done would tell too little: a dozen are under way at the end.
        if time.monotonic() < ends:
            forwards.append(texts_run)

    async with _served(loaded, count) as model:

        async def bulk(seed: int) -> None:
            order = random.Random(seed)
            while time.monotonic() < ends:
                # A mark of its own: identical texts in flight would share a forward.
                part = [f"{seed} {text}" for text in order.sample(texts, _REQUEST_TEXTS)]
                await model.embed(part, _BULK)

        async def ask() -> None:
            for number in itertools.count():
                if time.monotonic() >= ends or query is None:
                    return
                started = time.perf_counter()
                await model.embed([f"where is number {number} handled"], query)
                times.append(time.perf_counter() - started)
                await asyncio.sleep(0.1)

        await asyncio.gather(ask(), *(bulk(seed) for seed in range(_SATURATING)))
    ordered = sorted(times) or [0.0]
    bulk_texts = sum(forwards) - len(times)
    return _Mixed(bulk_texts / _LANE_SECONDS, ordered[int(len(ordered) * 0.99)])


# Overload


async def _overload(loaded: LoadedModel, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    rounds: list[tuple[_Answers, _Answers]] = []
    shares = []
    for _ in range(_ROUNDS):
        plain, shedding = _Answers(), _Answers()
        capacity = (await _bulk_and_queries(loaded, texts, None)).bulk_per_second
        await _open_loop(loaded, texts, 2 * capacity, plain, sheds=False)
        await _open_loop(loaded, texts, 2 * capacity, shedding, sheds=True)
        rounds.append((plain, shedding))
        shares.append(shedding.in_time * _SMALL_REQUEST / _OVERLOAD_SECONDS / capacity)
        say(
            f"overload: {shedding.in_time} answers in time, {plain.in_time} without shedding; "
            f"{shedding.late} late, {shedding.refused} refused; tokens wasted "
            f"{shedding.wasted_share:.3f}, without shedding {plain.wasted_share:.3f}"
        )
    gains = [shedding.in_time / max(plain.in_time, 1) for plain, shedding in rounds]
    gain = statistics.median(gains)
    wasted = statistics.median(shedding.wasted_share for _, shedding in rounds)
    return {
        "embed_overload_gain": figure(gain, 2.0, met=gain >= 2.0),
        "embed_overload_gain_least": figure(min(gains)),
        "embed_overload_gain_most": figure(max(gains)),
        "embed_overload_wasted_share": figure(wasted, 0.01, met=wasted < 0.01),
        "embed_overload_wasted_share_most": figure(max(one.wasted_share for _, one in rounds)),
        "embed_overload_in_time_to_capacity": figure(statistics.median(shares)),
    }


_SMALL_REQUEST = 8


@dataclass
class _Answers:
    in_time: int = 0
    late: int = 0
    refused: int = 0
    tokens: int = 0
    """What the engine ran, from all calls."""
    useful_tokens: int = 0
    """What it ran for calls that were answered in time."""

    def ran(self, _texts: int, tokens: int) -> None:
        """Counts a forward; several threads may do so at once."""
        with self.lock:
            self.tokens += tokens

    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def wasted_share(self) -> float:
        """Share of the tokens that the engine ran for nobody."""
        return 1 - self.useful_tokens / max(self.tokens, 1)


async def _open_loop(
    loaded: LoadedModel,
    texts: Sequence[str],
    texts_per_second: float,
    answers: _Answers,
    *,
    sheds: bool,
) -> None:
    """Sends requests at a fixed rate, whatever comes back; each caller waits for its deadline.

    Without shedding, the queue takes all and runs it in order, as a plain server does: whoever has
    gone away is not noticed.
    """
    order = random.Random(7)
    async with _served(loaded, answers.ran, queue_tokens=1 << 24) as model:

        async def call(number: int) -> None:
            part = [f"{number} {text}" for text in order.sample(texts, _SMALL_REQUEST)]
            started = time.monotonic()
            try:
                if sheds:
                    async with asyncio.timeout(_DEADLINE_SECONDS):
                        outcomes = await model.embed(
                            part, _BULK, deadline_seconds=_DEADLINE_SECONDS
                        )
                else:
                    outcomes = await model.embed(part, _BULK)
            except (TimeoutError, LodestoneError) as error:
                answers.late += isinstance(error, TimeoutError)
                answers.refused += not isinstance(error, TimeoutError)
                return
            in_time = time.monotonic() - started <= _DEADLINE_SECONDS
            answers.in_time += in_time
            answers.late += not in_time
            if in_time:
                answers.useful_tokens += sum(
                    one.token_count for one in outcomes if isinstance(one, Embedding)
                )

        tasks = []
        begin = time.monotonic()
        for number in itertools.count():
            due = begin + number * _SMALL_REQUEST / texts_per_second
            if due > begin + _OVERLOAD_SECONDS:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(call(number)))
        await asyncio.sleep(_DEADLINE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# Isolation


class _Picky(HashingBackend):
    """Fails every batch with a bad text in it, as an engine does."""

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        bad = _bad_id()
        if any(bad in ids for ids in batch):
            raise RuntimeError
        return super().infer(batch)


def _bad_id() -> int:
    (encoded,) = HashingEncoder(max_text_chars=100).encode([_BAD], Truncation.END)
    assert isinstance(encoded, EncodedText)
    return int(encoded.ids[1])


async def _isolation(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sends batches of 256 with 1% bad texts; returns the share of good ones that came back."""
    backend: Backend = _Picky()
    encoder = HashingEncoder(max_text_chars=1 << 20)
    marked = [f"{text} {_BAD}" if at % 100 == 0 else text for at, text in enumerate(texts)]
    good = delivered = 0
    async with _served(LoadedModel(backend, encoder), lambda _texts, _tokens: None) as model:
        for at in range(0, len(marked), 256):
            part = marked[at : at + 256]
            outcomes = await model.embed(part, _BULK)
            for text, outcome in zip(part, outcomes, strict=True):
                good += _BAD not in text
                delivered += isinstance(outcome, Embedding) and _BAD not in text
    share = delivered / good
    return {"embed_isolation_good_delivered": figure(share, 1.0, met=share == 1.0)}


def main() -> None:
    """Runs all; the last line is JSON."""
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(Path(folder))) + "\n")


if __name__ == "__main__":
    main()
