"""F14: clients that dawdle, say nothing or read nothing cost a good client little, and no memory.

A ratio of times on a shared machine says little below some milliseconds: a p99 under the floor
passes. Sixty unread scans would take 94 MB more if they were buffered whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest

from lodestone.io.v1 import root_service_pb2, root_service_pb2_grpc, scan_service_pb2
from lodestone.io.v1 import scan_service_pb2_grpc as scan_grpc
from lodestone.io.v1.tree_pb2 import Tree
from tests.faults.cluster import free_ports
from tests.faults.members import Member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_IDLE = 1000
_DAWDLING = 50
_UNREAD = 60
_FILES = 12_000
_CALLS = 400
_FLOOR_SECONDS = 0.050
_FLAT_BYTES = 80 << 20
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HEADERS_CUT_SHORT = b"\x00\x10\x00\x01\x04\x00\x00\x00\x01"
"""The head of a frame that announces 4 KiB of headers, which never come."""


@pytest.fixture(scope="module")
def io_service(folder: Path, roots: Path) -> Iterator[Member]:
    """An io service on a port, over a tree whose scan fills a stream's window."""
    for number in range(_FILES):
        path = roots / "wide" / f"d{number % 40}" / f"{'n' * 100}{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n", encoding="utf-8")
    settings = {"IO_ROOTS": f"trees={roots}", "IO_PARSE_WORKERS": "1", "IO_DRAIN_SECONDS": "2"}
    member = Member("slow", "io", folder, settings, port=free_ports(1)[0])
    member.start()
    yield member
    assert member.terminate() == 0


def opened(member: Member, first: bytes = b"") -> socket.socket:
    """Returns a connection that has sent something."""
    connection = socket.create_connection(("127.0.0.1", member.port), timeout=10)
    connection.sendall(first)
    return connection


async def p99_of_calls(member: Member) -> float:
    """Returns the 99th percentile of a small call's seconds."""
    times = []
    async with grpc.aio.insecure_channel(member.address) as channel:
        stub = root_service_pb2_grpc.RootServiceStub(channel)
        for _ in range(_CALLS):
            begin = time.perf_counter()
            await stub.ListRoots(root_service_pb2.ListRootsRequest(), timeout=10)
            times.append(time.perf_counter() - begin)
            await asyncio.sleep(0)
    return sorted(times)[int(len(times) * 0.99)]


async def dawdle(connections: list[socket.socket]) -> None:
    """Sends the preface of HTTP/2 on each connection, a byte a second."""
    for byte in _PREFACE:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(bytes([byte]))
        await asyncio.sleep(1)


async def test_slow_clients_cost_a_good_one_little(io_service: Member) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * _IDLE)), hard))
    process = psutil.Process(io_service.pid)
    await p99_of_calls(io_service)  # warms both sides
    alone = await p99_of_calls(io_service)
    before = process.memory_info().rss

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(opened(io_service)) for _ in range(_IDLE)]
        for _ in range(_DAWDLING):
            half = _PREFACE + _SETTINGS_FRAME + _HEADERS_CUT_SHORT
            stack.enter_context(opened(io_service, half))
        dawdling = asyncio.create_task(dawdle(connections[:_DAWDLING]))
        async with grpc.aio.insecure_channel(io_service.address) as channel:
            request = scan_service_pb2.ScanTreeRequest(tree=Tree(root="roots/trees"))
            unread = [scan_grpc.ScanServiceStub(channel).ScanTree(request) for _ in range(_UNREAD)]
            for call in unread:
                await call.initial_metadata()
            beside = min([await p99_of_calls(io_service) for _ in range(3)])
            grown = process.memory_info().rss - before
            for call in unread:
                call.cancel()
        dawdling.cancel()

    assert beside < max(2 * alone, _FLOOR_SECONDS)
    assert grown < _FLAT_BYTES
    after = await p99_of_calls(io_service)
    assert after < max(2 * alone, _FLOOR_SECONDS)
    deadline = time.monotonic() + 15
    while io_service.descriptors() > _DAWDLING:
        assert time.monotonic() < deadline, io_service.descriptors()
        await asyncio.sleep(0.1)
