"""The metrics of calls, in the names that dashboards for gRPC expect."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.runtime.running import eventually
from tests.unit.runtime.sample_calls import drained, embed, embed_stream, failure_of, scan

if TYPE_CHECKING:
    from tests.unit.runtime.running import Counters, Running

SIDES = ("server", "client")


async def test_a_unary_call_counts_one_message_each_way_on_both_sides(
    service: Running, counters: Counters
) -> None:
    labels = {
        "grpc_type": "unary",
        "grpc_service": "lodestone.embed.v1.EmbedService",
        "grpc_method": "Embed",
    }

    await embed(service.channel, "echo")

    for side in SIDES:
        assert counters.grown(f"grpc_{side}_started_total", **labels) == 1
        assert counters.grown(f"grpc_{side}_msg_received_total", **labels) == 1
        assert counters.grown(f"grpc_{side}_msg_sent_total", **labels) == 1
        assert counters.grown(f"grpc_{side}_handled_total", grpc_code="OK", **labels) == 1
        assert counters.grown(f"grpc_{side}_handling_seconds_count", **labels) == 1


async def test_a_server_stream_counts_each_response(service: Running, counters: Counters) -> None:
    await drained(scan(service.channel), [])

    kind = {"grpc_type": "server_stream", "grpc_method": "ScanTree"}
    assert counters.grown("grpc_server_msg_received_total", **kind) == 1
    assert counters.grown("grpc_server_msg_sent_total", **kind) == 2
    assert counters.grown("grpc_client_msg_sent_total", **kind) == 1
    assert counters.grown("grpc_client_msg_received_total", **kind) == 2
    for side in SIDES:
        assert counters.grown(f"grpc_{side}_handled_total", grpc_code="OK", **kind) == 1


async def test_a_bidirectional_stream_counts_each_message_both_ways(
    service: Running, counters: Counters
) -> None:
    await drained(embed_stream(service.channel, "a", "b", "c"), [])

    kind = {"grpc_type": "bidi_stream", "grpc_method": "EmbedStream"}
    for side in SIDES:
        assert counters.grown(f"grpc_{side}_msg_received_total", **kind) == 3
        assert counters.grown(f"grpc_{side}_msg_sent_total", **kind) == 3
        assert counters.grown(f"grpc_{side}_handled_total", grpc_code="OK", **kind) == 1


@pytest.mark.parametrize(
    ("model", "code"),
    [("missing", "NotFound"), ("crash", "Internal"), ("abort", "Aborted"), ("code", "OutOfRange")],
)
async def test_a_failed_call_is_counted_with_its_code_on_both_sides(
    service: Running, counters: Counters, model: str, code: str
) -> None:
    await failure_of(embed(service.channel, model))

    # What a method ends itself is counted when it is over, which its caller may hear of first.
    await eventually(lambda: counters.grown("grpc_server_handled_total") == 1)
    for side in SIDES:
        assert counters.grown(f"grpc_{side}_handled_total", grpc_code=code) == 1
        assert counters.grown(f"grpc_{side}_handled_total") == 1


@pytest.mark.parametrize("timeout_seconds", [0.03, 0.111])
async def test_a_passed_deadline_is_counted_as_such(
    service: Running, counters: Counters, timeout_seconds: float
) -> None:
    """The server hears of the caller's deadline as a mere cancel."""
    await failure_of(embed(service.channel, "wait", timeout=timeout_seconds))

    await eventually(lambda: counters.grown("grpc_server_handled_total") == 1)
    for side in SIDES:
        assert counters.grown(f"grpc_{side}_handled_total", grpc_code="DeadlineExceeded") == 1


async def test_a_cancel_is_counted_as_such(service: Running, counters: Counters) -> None:
    call = asyncio.ensure_future(embed(service.channel, "wait", timeout=30))
    await eventually(lambda: "inside" in service.app.events)

    call.cancel()

    await eventually(lambda: counters.grown("grpc_server_handled_total") == 1)
    for side in SIDES:
        assert counters.grown(f"grpc_{side}_handled_total", grpc_code="Canceled") == 1


async def test_a_deadline_ends_a_stream_that_is_silent(
    service: Running, counters: Counters
) -> None:
    received: list[Any] = []

    failure = await failure_of(drained(scan(service.channel, "quiet", 0.1), received))

    assert (failure.code, len(received)) == ("DEADLINE_EXCEEDED", 2)
    await eventually(lambda: "scan closed" in service.app.events)
    await eventually(lambda: counters.grown("grpc_server_handled_total") == 1)
    assert counters.grown("grpc_server_handled_total", grpc_code="DeadlineExceeded") == 1
