"""The threads that run forwards: they outlive whatever a model raises, and time forwards alone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY

from services.embed import engine as engine_module
from services.embed.backends.hashing import HashingBackend
from services.embed.backends.protocol import EngineDownError, EngineLostError
from services.embed.budget import TokenBudget
from services.embed.engine import Engine
from services.embed.errors import BadVectorError, EngineAwayError
from services.embed.lanes import LaneTurns
from services.embed.model import Embedding, Lane, Vectors
from services.embed.work import Batch, Request, Work
from tests.unit.embed.harness import DOCUMENT, MARKER, eventually, ids_of, marker_id, served

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import TokenIds


class _Panic(BaseException):
    """What extensions written in Rust raise when they panic is no `Exception` either."""


class _PanickingBackend(HashingBackend):
    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        if any(marker_id() in ids for ids in batch):
            raise _Panic
        return super().infer(batch)


async def test_a_panic_fails_its_text_alone_and_ends_no_thread() -> None:
    """Red when only `Exception` is caught: the thread ends, and nobody is ever answered."""
    async with served(_PanickingBackend()) as model, asyncio.timeout(30):
        good, bad = await model.embed(["good", MARKER], DOCUMENT)
        (after,) = await model.embed(["after"], DOCUMENT)

    assert isinstance(good, Embedding)
    assert isinstance(bad, BadVectorError)
    assert isinstance(after, Embedding)


class _Clock:
    """A clock that moves when the backend says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = staticmethod(time.monotonic)


class _AwayBackend(HashingBackend):
    """Is rebuilt for 30 s before each forward of half a second; loses the first."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self._clock = clock
        self._forwards = 0

    def wait_until_up(self) -> None:
        self._clock.now += 30.0

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        self._clock.now += 0.5
        self._forwards += 1
        if self._forwards == 1:
            raise EngineLostError(hung=False)
        return super().infer(batch)


async def test_the_wait_for_an_engine_is_no_time_of_a_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Red when it is: one rebuild has deadlines refused, and callers sent away, for minutes."""
    clock = _Clock()
    monkeypatch.setattr(engine_module, "time", clock)
    told: list[float] = []
    engine = Engine(
        _AwayBackend(clock),
        lambda _batch, _results, seconds: told.append(seconds),
        turns=LaneTurns(dict.fromkeys(Lane, 1.0), max_age_seconds=60),
        budget=TokenBudget(1024),
    )
    ids = ids_of("text")
    work = Work(0, (ids.tobytes(), ""), ids, Lane.BULK)
    work.waiters.append((Request(1), 0))
    engine.submit(Batch([work], Lane.BULK))
    await eventually(lambda: told)
    await asyncio.to_thread(engine.close)

    assert told == [0.5]


class _LosingBackend(HashingBackend):
    """Is away where `away` says so; ends whenever it gets the marker."""

    away = False

    def wait_until_up(self) -> None:
        if self.away:
            raise EngineDownError

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        if any(marker_id() in ids for ids in batch):
            raise EngineLostError(hung=False)
        return super().infer(batch)


async def test_texts_that_no_engine_ran_and_that_end_it_are_counted_as_that() -> None:
    """Red when all that is neither vector nor bad vector counts as invalid, or not at all."""

    def counted() -> dict[str, float]:
        name = "lodestone_embed_texts_total"
        ends = ("ok", "bad_vector", "invalid", "unavailable")
        labels = [{"lane": "bulk", "outcome": end} for end in ends]
        return {at["outcome"]: REGISTRY.get_sample_value(name, at) or 0.0 for at in labels}

    before = counted()
    backend = _LosingBackend()
    async with served(backend) as model:
        await model.embed(["good", MARKER], DOCUMENT)
        backend.away = True
        with pytest.raises(EngineAwayError):
            await model.embed(["one", "two", "three"], DOCUMENT)

    grown = {end: value - before[end] for end, value in counted().items()}
    assert grown == {"ok": 1, "bad_vector": 1, "invalid": 0, "unavailable": 3}
