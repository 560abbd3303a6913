"""Several callers at one model: one that brings much does not keep another out, nor waiting."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc
from services.embed.admission import Admission
from services.embed.fair_line import FairLine
from services.embed.model import Lane
from services.embed.packing import PackingQueue
from services.embed.serving import ServedModel
from services.runtime.channel import connect
from services.runtime.errors import OverloadedError
from services.runtime.tokens import digest_of, new_token
from tests.faults.cluster import free_ports
from tests.unit.embed.harness import DOCUMENT, GatedBackend, eventually, ids_of, served, service

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from services.embed.model import EmbedOptions, Outcome


@dataclass(frozen=True)
class _Item:
    tokens: int
    serial: int
    caller: str
    route: str = ""


def _line(items: Iterable[_Item]) -> FairLine[_Item]:
    line: FairLine[_Item] = FairLine()
    for item in items:
        line.add(item)
    return line


def test_a_caller_with_little_waits_for_a_turn_and_not_for_all_of_another() -> None:
    """Red when all stand in one line: the ten come after a hundred thousand."""
    line = _line(_Item(100, n, "greedy") for n in range(5000))
    for n in range(10):
        line.add(_Item(100, 5000 + n, "small"))

    first = [line.pop().caller for _ in range(40)]

    assert first.count("small") == 10


def test_callers_share_by_tokens_and_not_by_texts() -> None:
    line = _line(
        item for n in range(4000) for item in (_Item(10, 2 * n, "a"), _Item(1000, 2 * n + 1, "b"))
    )
    tokens = {"a": 0, "b": 0}
    while tokens["a"] < 30_000:
        item = line.pop()
        tokens[item.caller] += item.tokens

    assert tokens["b"] == pytest.approx(tokens["a"], rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 5000), st.sampled_from("abc"), st.booleans())))
def test_each_item_comes_once_and_those_of_a_caller_in_order(
    drawn: list[tuple[int, str, bool]],
) -> None:
    items = [_Item(tokens, n, caller) for n, (tokens, caller, _) in enumerate(drawn)]
    line = _line(items)
    kept = [item for item, (_, _, leaves) in zip(items, drawn, strict=True) if not leaves]
    for item, (_, _, leaves) in zip(items, drawn, strict=True):
        assert not leaves or (line.discard(item) and not line.discard(item))

    out = [line.pop() for _ in range(len(line))]

    for caller in "abc":
        assert [i for i in out if i.caller == caller] == [i for i in kept if i.caller == caller]
    assert len(line) == 0
    assert not line._credits


@given(
    st.lists(
        st.tuples(
            st.integers(1, 5000),
            st.sampled_from("abc"),
            st.lists(st.sampled_from("abcd")),
            st.booleans(),
        )
    )
)
def test_an_item_that_several_want_comes_once(
    drawn: list[tuple[int, str, list[str], bool]],
) -> None:
    items = [_Item(tokens, n, caller) for n, (tokens, caller, _, _) in enumerate(drawn)]
    line = _line(items)
    for item, (_, _, others, _) in zip(items, drawn, strict=True):
        for other in others:
            line.share(item, other)
    left = [item for item, (*_, leaves) in zip(items, drawn, strict=True) if not leaves]
    for item, (*_, leaves) in zip(items, drawn, strict=True):
        assert not leaves or (line.discard(item) and not line.discard(item))
        if leaves:
            line.share(item, "e")

    out = [line.pop() for _ in range(len(line))]

    assert sorted(out, key=lambda item: item.serial) == left
    assert len(line) == 0
    assert not line._lines
    assert not line._credits
    assert not line._shared


def test_a_window_is_filled_by_turns() -> None:
    queue: PackingQueue[_Item] = PackingQueue(window_tokens=2000)
    for n in range(1000):
        queue.add(_Item(100, n, "greedy"))
    queue.add(_Item(100, 1000, "small"))

    before = 0
    while all(item.caller == "greedy" for item in queue.take(token_budget=400, max_items=4)):
        before += 4

    assert before <= 20 + 2 * 11  # the window, and a turn or two


async def _asked_for_many(model: ServedModel) -> list[asyncio.Task[Any]]:
    """Has one caller ask for five thousand texts, which wait once it returns."""
    many = [
        asyncio.create_task(
            model.embed([f"many {n} {m}" for m in range(250)], DOCUMENT, caller="many")
        )
        for n in range(20)
    ]
    await eventually(lambda: len(model._batcher._in_flight) == 5000)
    return many


async def test_texts_of_a_caller_with_few_run_before_the_rest_of_one_with_many() -> None:
    backend = GatedBackend()
    backend._info = replace(backend._info, token_budget=16)
    async with served(backend, batch_max_texts=4) as model:
        many = await _asked_for_many(model)
        few = asyncio.create_task(model.embed(["few"], DOCUMENT, caller="few"))
        await eventually(lambda: len(model._batcher._in_flight) == 5001)
        backend.gate.set()
        await asyncio.gather(few, *many)

    ran = [ids.tolist() for batch in backend.batches for ids in batch]
    assert ran.index(ids_of("few").tolist()) < 1500


async def test_a_text_that_several_callers_want_runs_in_the_turn_that_comes_first() -> None:
    """Red when it stands in line for the first alone: it is then the last of five thousand."""
    backend = GatedBackend()
    backend._info = replace(backend._info, token_budget=16)
    async with served(backend, batch_max_texts=4) as model:
        many = await _asked_for_many(model)
        last = list(model._batcher._in_flight.values())[-1]
        (text,) = (f"many {n} {m}" for n in range(20) for m in range(250)
                   if ids_of(f"many {n} {m}").tolist() == last.ids.tolist())  # fmt: skip
        few = asyncio.create_task(model.embed([text], DOCUMENT, caller="few"))
        await eventually(lambda: len(last.waiters) == 2)
        backend.gate.set()
        await asyncio.gather(few, *many)

    ran = [ids.tolist() for batch in backend.batches for ids in batch]
    assert len(ran) == 5000
    assert ran.index(last.ids.tolist()) < 1500


def _admission(max_tokens: int = 100_000, window_tokens: int = 0) -> Admission:
    return Admission(
        max_tokens=max_tokens,
        max_bytes=1 << 30,
        concurrency=1,
        batch_tokens=1000,
        window_tokens=window_tokens,
    )


def _fill(admission: Admission, caller: str, *, step: int = 500) -> int:
    """Brings in all that goes; returns its tokens."""
    tokens = 0
    while True:
        try:
            admission.admit(tokens=step, size=1, lane=Lane.BULK, caller=caller)
        except OverloadedError:
            return tokens
        tokens += step


async def test_a_caller_that_fills_the_queue_leaves_room_for_another() -> None:
    """Red when the first takes all: the second is refused for as long as the first goes on."""
    admission = _admission()

    first, second = _fill(admission, "first"), _fill(admission, "second")

    assert first > 70_000
    assert second > 5_000


async def test_two_callers_that_go_on_end_up_with_as_much_each() -> None:
    admission = _admission()
    tickets: dict[str, list[Any]] = {"first": [], "second": []}
    for _ in range(3000):
        for caller, held in tickets.items():
            try:
                held.append(admission.admit(tokens=500, size=1, lane=Lane.BULK, caller=caller))
            except OverloadedError:
                held.pop(0).__exit__(None, None, None)

    held_by = {caller: len(held) for caller, held in tickets.items()}
    assert held_by["first"] == pytest.approx(held_by["second"], rel=0.1)


async def test_who_waits_for_its_share_holds_nobody_up() -> None:
    admission = _admission()
    _fill(admission, "greedy")

    async def enter(caller: str) -> None:
        with await admission.admit_when_room(tokens=1000, size=1, lane=Lane.BULK, caller=caller):
            pass

    waiting = asyncio.create_task(enter("greedy"))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await enter("other")
    assert not waiting.done()
    waiting.cancel()


@pytest.mark.parametrize("tokens", [40_000, 95_000])
@pytest.mark.parametrize("caller", ["stream", "calls"])
async def test_calls_do_not_pass_a_large_group_that_waits_for_room_for_ever(
    tokens: int, caller: str
) -> None:
    """Red when calls look at the room alone: they take whatever becomes free, bit by bit.

    Also red when a group that fits nothing but an empty queue is passed as one that has its share.
    """
    admission = _admission()

    def call() -> Any:
        return admission.admit(tokens=5000, size=1, lane=Lane.BULK, caller="calls")

    held = [call() for _ in range(_fill(_admission(), "calls", step=5000) // 5000)]
    refused = 0

    async def enter() -> None:
        with await admission.admit_when_room(tokens=tokens, size=1, lane=Lane.BULK, caller=caller):
            pass

    group = asyncio.create_task(enter())
    for _ in range(100):
        await asyncio.sleep(0)
        if held:
            held.pop(0).__exit__(None, None, None)
        await asyncio.sleep(0)
        try:
            held.append(call())
        except OverloadedError:
            refused += 1

    assert group.done()
    assert refused <= 20
    assert len(held) > 0


async def test_a_small_group_does_not_pass_a_larger_one_of_its_caller() -> None:
    """Red when who waits for its share holds up nobody at all: small ones keep it waiting."""
    admission = _admission()
    held = admission.admit(tokens=70_000, size=1, lane=Lane.BULK, caller="one")
    order: list[int] = []

    async def enter(tokens: int) -> None:
        with await admission.admit_when_room(tokens=tokens, size=1, lane=Lane.BULK, caller="one"):
            order.append(tokens)

    waiting = [asyncio.create_task(enter(tokens)) for tokens in (95_000, 10, 10)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert order == []
    held.__exit__(None, None, None)
    await asyncio.gather(*waiting)

    assert order == [95_000, 10, 10]


async def test_queries_that_fill_the_queue_leave_bulk_a_call_at_a_time() -> None:
    """Red when any text that waits keeps bulk out: it gets no turn at all while queries fill it."""
    admission = _admission()
    for caller in "abc":
        with contextlib.suppress(OverloadedError):
            while True:
                admission.admit(tokens=500, size=1, lane=Lane.INTERACTIVE, caller=caller)
    assert admission.tokens > 90_000

    with (
        admission.admit(tokens=20_000, size=1, lane=Lane.BULK, caller="indexer"),
        pytest.raises(OverloadedError),
    ):
        admission.admit(tokens=500, size=1, lane=Lane.BULK, caller="indexer")
    async with asyncio.timeout(10):
        with await admission.admit_when_room(tokens=95_000, size=1, lane=Lane.BULK, caller="x"):
            pass


async def test_a_deadline_of_a_new_caller_counts_its_turns_and_not_all_that_waits() -> None:
    """Red when the whole lane is ahead: it is refused, and would have been served at once."""
    admission = _admission(window_tokens=2000)
    for _ in range(500):
        admission.note_forward(1000, 1.0)
    _fill(admission, "greedy")

    admission.admit(tokens=100, size=1, lane=Lane.BULK, caller="new", deadline_seconds=10.0)
    with pytest.raises(OverloadedError):
        admission.admit(tokens=100, size=1, lane=Lane.BULK, caller="greedy", deadline_seconds=10.0)


_REQUEST = pb.EmbedRequest(
    model="models/hashing", options=pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT), texts=["a"]
)


@pytest.fixture
def callers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who called, as models are told."""
    told: list[str] = []
    embed = ServedModel.embed

    async def noting(
        self: ServedModel, texts: Sequence[str], options: EmbedOptions, **more: Any
    ) -> list[Outcome]:
        told.append(more["caller"])
        return await embed(self, texts, options, **more)

    monkeypatch.setattr(ServedModel, "embed", noting)
    return told


async def _stream(channel: grpc.aio.Channel) -> None:
    request = pb.EmbedStreamRequest(id=1, model=_REQUEST.model, options=_REQUEST.options, text="a")
    call = embed_service_pb2_grpc.EmbedServiceStub(channel).EmbedStream(iter([request]))
    assert len([answer async for answer in call]) == 1


async def test_each_connection_is_a_caller(callers: list[str]) -> None:
    target = f"127.0.0.1:{free_ports(1)[0]}"
    apart = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        service(target),
        grpc.aio.insecure_channel(target, options=apart) as one,
        grpc.aio.insecure_channel(target, options=apart) as other,
    ):
        await embed_service_pb2_grpc.EmbedServiceStub(one).Embed(_REQUEST)
        await _stream(one)
        await embed_service_pb2_grpc.EmbedServiceStub(other).Embed(_REQUEST)

    assert callers[0] == callers[1] != callers[2]


async def test_whoever_has_a_token_is_one_caller_by_its_name(
    address: str, tmp_path: Path, callers: list[str]
) -> None:
    """Red when connections count: who opens many would get more."""
    token = new_token()
    own = tmp_path / "own"
    own.write_text(token, encoding="ascii")
    entry = {"id": "e1", "name": "bot", "sha256": digest_of(token), "scopes": ["run"]}
    everything = {"workspaces": ["*"], "roots": ["*"]}
    accepted = tmp_path / "accepted"
    accepted.write_text(json.dumps({"tokens": [{**entry, **everything}]}), encoding="utf-8")
    async with (
        service(address, accepted_tokens_file=str(accepted)),
        connect(address, token_file=own) as channel,
    ):
        await embed_service_pb2_grpc.EmbedServiceStub(channel).Embed(_REQUEST)
        await _stream(channel)

    assert callers == ["bot", "bot"]
