"""The engine in a process of its own: it may die or hang, its callers do not."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog
from prometheus_client import REGISTRY

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc
from services.embed.backends.hashing import HashingBackend
from services.embed.backends.protocol import EngineLostError, LoadedModel
from services.embed.errors import BadVectorError, EngineAwayError, TextEndsEngineError
from services.embed.hosting.life import LoadRequest
from services.embed.hosting.process import EngineProcess
from services.embed.model import Embedding, ModelId
from services.embed.sharing import SharedBackend
from services.embed.specs import specs_of
from services.runtime.exits import StartError
from tests.unit.embed.harness import (
    DOCUMENT,
    engine_process,
    eventually,
    ids_of,
    service,
    settings_of,
)
from tests.unit.embed.poison import (
    BREAKS,
    DIES,
    EXHAUSTS,
    GARBLES,
    GREEDY,
    HANGS,
    HEAVY,
    MOST_TOKENS,
    SPOILED,
    SPOILS,
    PoisonedSource,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.embed.serving import ServedModel

GOOD = [f"def function_{n}(): return {n}" for n in range(24)]
pytestmark = pytest.mark.slow


@asynccontextmanager
async def hosted(**fields: Any) -> AsyncIterator[tuple[ServedModel, EngineProcess]]:
    """Yields a model whose engine is a process with the poisoned backend."""
    from services.embed.app import EmbedApp

    settings = settings_of(**{"rebuild_seconds": 20.0, "hang_seconds": 5.0, **fields})
    told: list[bool] = []
    engine = EngineProcess(
        LoadRequest(PoisonedSource(ModelId("hashing"), 384), settings, 0),
        hang_seconds=settings.hang_seconds,
        rebuild_seconds=settings.rebuild_seconds,
        load_seconds=settings.load_seconds,
        tell=told.append,
    )
    app = EmbedApp(settings)
    try:
        encoder = await asyncio.to_thread(engine.wait_until_loaded)
        (spec,) = specs_of(settings)
        model = app.serve(LoadedModel(engine, encoder), spec)
        yield model, engine
        await model.close()
    finally:
        await asyncio.to_thread(engine.close)
        await app.close()


async def test_vectors_are_those_of_the_backend() -> None:
    async with hosted() as (model, _):
        outcomes = await model.embed(GOOD, DOCUMENT)

    for text, outcome in zip(GOOD, outcomes, strict=True):
        assert isinstance(outcome, Embedding)
        assert outcome.vector == HashingBackend().infer([ids_of(text)])[0].tobytes()


async def test_a_text_that_ends_the_engine_fails_alone() -> None:
    """Red without the bisection of suspects: its whole batch fails, or nobody is ever answered."""
    async with hosted() as (model, engine):
        first = engine.pid
        outcomes = await model.embed([*GOOD[:10], DIES, *GOOD[10:]], DOCUMENT)
        (after,) = await model.embed(["after"], DOCUMENT)

    assert isinstance(outcomes.pop(10), TextEndsEngineError)
    assert all(isinstance(outcome, Embedding) for outcome in outcomes), outcomes
    assert isinstance(after, Embedding)
    assert engine.pid != first


async def test_a_text_that_hangs_the_engine_fails_alone() -> None:
    """Red without the watchdog: the call never ends."""
    async with hosted(hang_seconds=0.5) as (model, _):
        outcomes = await model.embed([*GOOD[:2], HANGS], DOCUMENT)

    assert isinstance(outcomes.pop(2), TextEndsEngineError)
    assert all(isinstance(outcome, Embedding) for outcome in outcomes), outcomes


async def test_a_model_that_gives_no_vectors_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when any first rows will do: it serves, until a text fails; then no engine agrees."""
    monkeypatch.setenv(SPOILED, "1")
    with pytest.raises(StartError) as failure:
        async with hosted():
            pass

    assert "no vectors" in failure.value.message


async def test_an_engine_whose_answers_make_no_sense_is_replaced() -> None:
    """Red when they end the thread that reads: all later texts fail, and health says SERVING."""
    async with hosted(hang_seconds=0.5) as (model, engine):
        first = engine.pid
        async with asyncio.timeout(60):
            (bad,) = await model.embed([GARBLES], DOCUMENT)
            outcomes = await model.embed(GOOD, DOCUMENT)

    assert isinstance(bad, TextEndsEngineError)
    assert all(isinstance(outcome, Embedding) for outcome in outcomes), outcomes
    assert engine.pid != first


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_an_engine_that_is_killed_or_frozen_costs_its_callers_nothing_but_time(
    number: signal.Signals,
) -> None:
    """Red when a lost batch is blamed at once: a text that did nothing would end failed."""
    async with hosted(hang_seconds=0.5) as (model, engine):
        await model.embed(GOOD[:1], DOCUMENT)
        first = engine.pid
        os.kill(first, number)
        outcomes = await model.embed(GOOD, DOCUMENT)

    assert all(isinstance(outcome, Embedding) for outcome in outcomes), outcomes
    assert engine.pid != first


async def test_an_engine_is_replaced_though_no_line_of_it_can_be_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Red when a log on a full disk raises: it ends the thread that would start the next engine."""
    async with hosted() as (model, engine):
        first = engine.pid
        with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as full:
            monkeypatch.setattr(sys, "stderr", full)
            os.kill(first, signal.SIGKILL)
            async with asyncio.timeout(60):
                outcomes = await model.embed([*GOOD, DIES], DOCUMENT)
            monkeypatch.undo()

    assert isinstance(outcomes.pop(), TextEndsEngineError)
    assert all(isinstance(outcome, Embedding) for outcome in outcomes), outcomes


def _engines_up() -> float:
    return REGISTRY.get_sample_value("lodestone_embed_engines_up") or 0.0


async def test_a_rebuilt_engine_may_replay_another_number_of_graphs() -> None:
    """Red when the number belongs to what a model is: the engine that follows would not serve.

    Also red when the number of the first engine is told for ever.
    """
    before = REGISTRY.get_sample_value("lodestone_embed_cuda_graphs") or 0.0
    others = _engines_up()
    async with hosted() as (model, engine):
        told = []
        for _ in range(2):
            await model.embed(GOOD, DOCUMENT)
            await eventually(lambda: _engines_up() == others + 1)
            graphs = REGISTRY.get_sample_value("lodestone_embed_cuda_graphs")
            told.append((graphs, before + engine.pid))
            os.kill(engine.pid, signal.SIGKILL)
            await eventually(lambda: not engine._serving)

    await eventually(lambda: _engines_up() == others)
    assert [graphs for graphs, _ in told] == [expected for _, expected in told]
    assert told[0] != told[1]


async def test_texts_do_not_wait_for_ever_for_an_engine_that_does_not_come_back() -> None:
    """Red when a caller waits without end; the outcome says that trying again may help."""
    async with hosted(rebuild_seconds=0.3) as (model, engine):
        engine._canary = -engine._canary  # type: ignore[operator] # no new engine will agree
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineAwayError) as away:
            await model.embed(["text"], DOCUMENT)

    assert away.value.retry_after_seconds


async def test_all_that_waits_for_an_engine_fails_together_when_it_does_not_come_back() -> None:
    """Red when each batch waits for itself: the last of 24 fails after 24 times as long."""
    async with hosted(rebuild_seconds=3.0, batch_max_texts=1) as (model, engine):
        engine._canary = -engine._canary  # type: ignore[operator] # no new engine will agree
        os.kill(engine.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            with pytest.raises(EngineAwayError):
                await model.embed(GOOD, DOCUMENT)


async def test_a_batch_that_finds_no_memory_is_halved_and_the_next_ones_are_smaller() -> None:
    """Red when the budget does not shrink: each batch fails once more before it is halved."""
    texts = [f"{GREEDY} number {n} of them" for n in range(32)]
    async with hosted() as (model, engine):
        first = engine.pid
        outcomes = await model.embed(texts, DOCUMENT)
        budget = model._batcher._budget.tokens
        again = await model.embed([f"{text} again" for text in texts], DOCUMENT)

    assert all(isinstance(outcome, Embedding) for outcome in [*outcomes, *again])
    assert budget <= 2 * MOST_TOKENS
    assert engine.pid == first


async def test_batches_that_end_the_engine_are_followed_by_smaller_ones() -> None:
    """Red when only what an engine says of memory counts: each later batch is killed as well."""
    texts = [f"{HEAVY} number {n} of them" for n in range(32)]
    async with hosted() as (model, engine):
        first = engine.pid
        outcomes = await model.embed(texts, DOCUMENT)
        second = engine.pid
        again = await model.embed([f"{text} again" for text in texts], DOCUMENT)
        last = engine.pid

    assert all(isinstance(outcome, Embedding) for outcome in [*outcomes, *again])
    assert first != second
    assert second == last


async def test_a_text_that_finds_no_memory_alone_fails_alone() -> None:
    huge = f"{GREEDY} " + "word " * MOST_TOKENS
    async with hosted() as (model, engine):
        first = engine.pid
        good, bad = await model.embed([GOOD[0], huge], DOCUMENT)

    assert isinstance(good, Embedding)
    assert isinstance(bad, BadVectorError)
    assert engine.pid == first


@pytest.mark.parametrize(
    ("word", "cause"),
    [(EXHAUSTS, "out_of_memory"), (BREAKS, "raised"), (SPOILS, "wrong_vectors")],
)
async def test_an_engine_that_fails_from_a_text_on_is_replaced_and_only_that_one_fails(
    word: str, cause: str
) -> None:
    """Red when the text that met the fault is blamed: it is a neighbour of the one that made it."""

    def replaced() -> float:
        name, labels = "lodestone_embed_engine_losses_total", {"cause": cause}
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = replaced()
    async with hosted() as (model, engine):
        first = engine.pid
        outcomes = await model.embed([*GOOD[:6], word, *GOOD[6:9]], DOCUMENT)

    assert isinstance(outcomes.pop(6), TextEndsEngineError)
    assert all(isinstance(outcome, Embedding) for outcome in outcomes), outcomes
    assert engine.pid != first
    assert replaced() > before


async def test_the_engine_ends_with_the_service(address: str) -> None:
    async with service(address, isolation="process"):
        process = engine_process()
    await eventually(lambda: not process.is_running())


async def test_the_bundled_model_is_rebuilt_after_a_kill(address: str) -> None:
    """The real engine, killed while it works: every text is answered."""
    async with service(address, model="minilm", backend="openvino") as channel:
        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
        request = pb.EmbedRequest(
            model="models/all-minilm-l6-v2",
            options=pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT, truncation=pb.TRUNCATION_END),
            texts=[f"{text} " * 40 for text in GOOD] * 4,
        )
        before = await stub.Embed(request, timeout=60)
        call = asyncio.ensure_future(stub.Embed(request, timeout=60))
        await asyncio.to_thread(os.kill, engine_process().pid, signal.SIGKILL)
        after = await call

    assert [r.embedding.vector for r in after.results] == [
        r.embedding.vector for r in before.results
    ]


async def test_a_frozen_engine_that_reads_no_more_hangs_nobody() -> None:
    """Red when sending has no limit: a batch larger than the socket's buffer is never watched."""
    batch = [np.arange(400_000, dtype=np.int64)]
    async with hosted(hang_seconds=0.5) as (_, engine):
        os.kill(engine.pid, signal.SIGSTOP)

        with pytest.raises(EngineLostError):
            await asyncio.wait_for(asyncio.to_thread(engine.infer, batch), 20)


async def test_an_engine_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Red when the supervisor dies of an OSError: nobody ever starts the next engine."""
    async with hosted() as (model, engine):
        with structlog.testing.capture_logs() as caught:
            monkeypatch.setattr(sys, "executable", "/nonexistent/python")
            os.kill(engine.pid, signal.SIGKILL)
            await eventually(lambda: any(e["event"] == "engine_rebuild_failed" for e in caught))
        monkeypatch.undo()
        outcomes = await model.embed(GOOD, DOCUMENT)

    assert all(isinstance(outcome, Embedding) for outcome in outcomes), outcomes


async def test_an_engine_that_freezes_while_it_loads_is_replaced() -> None:
    """Red when loading has no limit: the supervisor waits for the frozen one for ever."""
    async with hosted(load_seconds=2.0) as (model, engine):
        first = engine.pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: engine.pid not in {0, first})
        second = engine.pid
        os.kill(second, signal.SIGSTOP)
        outcomes = await model.embed(GOOD, DOCUMENT)

    assert all(isinstance(outcome, Embedding) for outcome in outcomes), outcomes
    assert engine.pid not in {first, second}


async def test_a_model_whose_engine_is_rebuilt_holds_no_turn() -> None:
    """Red when the wait for the engine is within the turn: its neighbours wait for it as well."""
    async with hosted(rebuild_seconds=60.0) as (away, engine):
        assert isinstance(away._backend, SharedBackend)
        neighbour = SharedBackend(HashingBackend(), away._backend._turns, weight=1)
        first = engine.pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: engine.pid not in {0, first})
        os.kill(engine.pid, signal.SIGSTOP)  # it froze while it loads
        waiting = asyncio.ensure_future(away.embed(["a text"], DOCUMENT))
        await eventually(lambda: away._batcher._running._value)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.1)

        rows = await asyncio.wait_for(asyncio.to_thread(neighbour.infer, [ids_of("text")]), 10)
        os.kill(engine.pid, signal.SIGCONT)
        (late,) = await waiting

    assert len(rows) == 1
    assert isinstance(late, Embedding)
