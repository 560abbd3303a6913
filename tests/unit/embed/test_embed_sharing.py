"""Several models on one machine: turns by weight, none for who is alone, and nobody starves."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY

from services.embed import sharing
from services.embed.app import EmbedApp
from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.backends.protocol import EngineDownError, LoadedModel
from services.embed.model import Embedding, ModelId
from services.embed.sharing import Devices, SharedBackend, Turns
from services.embed.specs import specs_of
from tests.unit.embed.harness import DOCUMENT, GatedBackend, eventually, ids_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.embed.model import TokenIds, Vectors
    from services.embed.sharing import Seat


class _Machine:
    """A device, threads that want it always, and clocks that move by what their forwards cost."""

    def __init__(self) -> None:
        self._own = threading.local()
        self.turns = Turns(clock=lambda: float(getattr(self._own, "now", 0.0)))
        self.order: list[str] = []

    def forward(self, name: str, seat: Seat, cost: float) -> None:
        with self.turns.turn(seat):
            self.spend(cost)
            self.order.append(name)

    def spend(self, cost: float) -> None:
        self._own.now = getattr(self._own, "now", 0.0) + cost

    def saturate(self, total: int, wants: Sequence[tuple[str, Seat, float, int]]) -> None:
        """Runs forwards of all models from their threads at once until there were so many."""

        def work(name: str, seat: Seat, cost: float) -> None:
            while len(self.order) < total:
                self.forward(name, seat, cost)

        workers = [
            threading.Thread(target=work, args=(name, seat, cost), daemon=True)
            for name, seat, cost, threads in wants
            for _ in range(threads)
        ]
        first = self.turns.join(weight=1, concurrency=1)
        with self.turns.turn(first):  # nobody starts before all are there
            for worker in workers:
                worker.start()
            _wait_until(lambda: all(seat.waiting == threads for _, seat, _, threads in wants))
        for worker in workers:
            worker.join(30)
            assert not worker.is_alive()


@pytest.mark.parametrize("streams", [1, 2])
def test_saturated_models_get_forwards_in_proportion_of_their_weights(streams: int) -> None:
    """Red with weight 1 for all: each gets a half."""
    machine = _Machine()
    seats = [machine.turns.join(weight=weight, concurrency=streams) for weight in (3, 1)]

    machine.saturate(800, [("a", seats[0], 1.0, streams), ("b", seats[1], 1.0, streams)])

    assert 0.70 < machine.order[:800].count("a") / 800 < 0.80


def test_a_model_with_dear_forwards_gets_fewer_of_them() -> None:
    """The share is of the machine's time: forwards that cost four times as much come a fourth."""
    machine = _Machine()
    seats = [machine.turns.join(weight=1, concurrency=1) for _ in range(2)]

    machine.saturate(500, [("dear", seats[0], 4.0, 1), ("cheap", seats[1], 1.0, 1)])

    assert 0.17 < machine.order[:500].count("dear") / 500 < 0.23


def test_a_model_that_needs_the_whole_machine_is_not_starved_by_one_that_needs_half() -> None:
    """Red when whoever fits goes first: one half then follows the other without a gap."""
    machine = _Machine()
    whole = machine.turns.join(weight=1, concurrency=1)
    half = machine.turns.join(weight=1, concurrency=2)
    workers = [
        threading.Thread(target=machine.forward, args=(name, seat, 1.0), daemon=True)
        for name, seat in (("whole", whole), ("half", half))
    ]

    with machine.turns.turn(half):
        with machine.turns.turn(half):
            workers[0].start()
            _wait_until(lambda: whole.waiting == 1)
            machine.spend(1.0)
        workers[1].start()  # there is room for it, and not for the other
        _wait_until(lambda: half.waiting == 1)
    for worker in workers:
        worker.join(10)

    assert machine.order == ["whole", "half"]


def test_who_is_alone_uses_all_of_the_machine_and_waits_for_nobody() -> None:
    def waits() -> float:
        return REGISTRY.get_sample_value("lodestone_embed_turn_wait_seconds_count") or 0.0

    turns = Turns()
    seat = turns.join(weight=1, concurrency=4)
    turns.join(weight=5, concurrency=1)
    together = threading.Barrier(4)
    before = waits()

    def forward() -> None:
        with turns.turn(seat):
            together.wait(10)

    workers = [threading.Thread(target=forward, daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)

    assert not together.broken
    assert waits() == before


def test_a_model_that_had_nothing_to_do_saves_nothing_up() -> None:
    """Red when it keeps its old account: it then runs a hundred forwards in a row."""
    machine = _Machine()
    busy, idle = (machine.turns.join(weight=1, concurrency=1) for _ in range(2))
    machine.forward("idle", idle, 1.0)
    for _ in range(100):
        machine.forward("busy", busy, 1.0)
    machine.order.clear()

    machine.saturate(40, [("busy", busy, 1.0, 1), ("idle", idle, 1.0, 1)])

    assert 15 <= machine.order[:40].count("busy") <= 25


def test_a_forward_that_raises_gives_its_turn_back() -> None:
    backend = Devices().shared(_Broken(), weight=1)

    for _ in range(3):
        with pytest.raises(RuntimeError):
            backend.infer([])


class _Broken(HashingBackend):
    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        raise RuntimeError("engine")


def test_a_backend_that_runs_elsewhere_takes_no_turns() -> None:
    """A remote model that hangs must not hold up those of this machine."""
    backend = HashingBackend()
    backend._info = replace(backend.info, device="")

    assert Devices().shared(backend, weight=1) is backend


class _SteadyBackend(HashingBackend):
    """Notes its forwards, each of which takes the time of a small one."""

    def __init__(self, name: str, order: list[str]) -> None:
        super().__init__()
        self._name = name
        self._order = order

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        time.sleep(0.002)  # how long an engine is busy cannot be had without time passing
        self._order.append(self._name)
        return super().infer(batch)


async def test_two_served_models_share_the_machine_by_weight() -> None:
    """Forwards alternate when the app forgets to share, or keeps no turn for who comes back."""
    order: list[str] = []
    settings = settings_of(batch_max_texts=1)
    app = EmbedApp(settings)
    (spec,) = specs_of(settings)
    models = [
        app.serve(
            LoadedModel(_SteadyBackend(name, order), HashingEncoder(max_text_chars=1000)),
            replace(spec, model_id=ModelId(name), share=share),
        )
        for name, share in (("heavy", 4), ("light", 1))
    ]

    answers = await asyncio.gather(
        *(model.embed([f"text {n}" for n in range(100)], DOCUMENT) for model in models)
    )
    for model in models:
        await model.close()
    await app.close()

    assert all(isinstance(outcome, Embedding) for answer in answers for outcome in answer)
    assert 0.70 < order[:100].count("heavy") / 100 < 0.90


async def test_a_stop_lets_go_whoever_waits_for_a_turn() -> None:
    """Red when only the engine is stopped: a model waits for a neighbour's forward to end."""
    turns = Turns()
    busy = GatedBackend()
    first, second = (SharedBackend(one, turns, weight=1) for one in (busy, HashingBackend()))
    forward = asyncio.create_task(asyncio.to_thread(first.infer, [ids_of("a")]))
    await eventually(busy.entered.is_set)
    waiting = asyncio.create_task(asyncio.to_thread(second.infer, [ids_of("b")]))
    await eventually(lambda: second._seat.waiting)

    second.stop()
    with pytest.raises(EngineDownError):
        await asyncio.wait_for(waiting, 10)
    busy.gate.set()
    assert len(await forward) == 1


async def test_a_forward_that_does_not_end_keeps_its_turn_for_a_while_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Red when a turn lasts for as long as the forward: a hung model stops all of its device."""
    monkeypatch.setattr(sharing, "_LONGEST_TURN_SECONDS", 0.2)
    turns = Turns()
    hung = GatedBackend()
    first, second = (SharedBackend(one, turns, weight=1) for one in (hung, HashingBackend()))

    async def begin(backend: SharedBackend) -> asyncio.Task[Vectors]:
        return asyncio.create_task(asyncio.to_thread(backend.infer, [ids_of("a")]))

    forward = await begin(first)
    await eventually(hung.entered.is_set)
    for _ in range(3):
        assert len(await asyncio.wait_for(await begin(second), 10)) == 1
    assert not forward.done()
    hung.gate.set()
    await forward

    # What was taken away is not given back once more: the next one has the device for itself.
    monkeypatch.setattr(sharing, "_LONGEST_TURN_SECONDS", 60.0)
    hung.gate.clear()
    hung.entered.clear()
    forward = await begin(first)
    await eventually(hung.entered.is_set)
    waiting = await begin(second)
    await eventually(lambda: second._seat.waiting)
    hung.gate.set()
    await asyncio.gather(forward, waiting)
    assert len(hung.batches) == 2


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
