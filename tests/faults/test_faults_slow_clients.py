"""F14: clients that dawdle, say nothing or read nothing cost a good client little, and no memory.

What streams were let to send before they were held back is work as any other and is worked off
first: until the service asks for next to no processor, which does not depend on how many others
want it. Then its calls are timed in turn with those of a twin that has no slow clients, so that
what else the machine does slows both. A window begins with a thousand new connections and lasts
for hundreds of calls, so that a 99th percentile tells of calls beside slow clients, not of the two
that met their handshakes. The calls of all windows count together. A ratio of times on a shared
machine says little below some milliseconds: a p99 under the floor passes. Sixty unread scans would
take 94 MB more if they were buffered whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest

from lodestone.embed.v1 import embed_service_pb2 as embed_pb2
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.indexer.v1 import maintenance_service_pb2 as maintenance_pb2
from lodestone.indexer.v1 import maintenance_service_pb2_grpc as maintenance_grpc
from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from lodestone.indexer.v1 import workspace_service_pb2_grpc as workspaces_grpc
from lodestone.io.v1 import root_service_pb2, root_service_pb2_grpc, scan_service_pb2
from lodestone.io.v1 import scan_service_pb2_grpc as scan_grpc
from lodestone.io.v1.tree_pb2 import Tree
from tests.faults.cluster import MODEL, ROOT, Cluster, caller, free_ports, make_cluster
from tests.faults.trees import write_generated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.faults.members import Member

_IDLE = 1000
_DAWDLING = 50
_UNREAD = 60
_UNREAD_VECTORS = 20
_FILES = 12_000
_TEXTS = 3000
_WINDOW_SECONDS = 1.0
_WINDOWS = 4
_MOST_WINDOWS = 16
_LOOK_SECONDS = 0.5
_REST = 0.1
"""Share of one processor that a service asks for at most when it has worked everything off."""
_BURST_SECONDS = 40.0
_FLOOR_SECONDS = 0.005
_FLAT_BYTES = 80 << 20
_CONNECTED_BYTES = 64 << 20
"""What a thousand connections take at a time, however many there were."""
_NAME = "slow"
_SMALL_WINDOWS = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
"""A client that takes no more of a stream than this before it reads: by default it takes all."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HEADERS_CUT_SHORT = b"\x00\x10\x00\x01\x04\x00\x00\x00\x01"
"""The head of a frame that announces 4 KiB of headers, which never come."""


@dataclass(frozen=True)
class Target:
    """A service, what a good client asks of it, and a stream whose answers a bad one leaves."""

    member: Callable[[Cluster], Member]
    call: Callable[[grpc.aio.Channel], Any]
    stream: Callable[[grpc.aio.Channel], Any]
    unread: int = _UNREAD


def _listed_roots(channel: grpc.aio.Channel) -> Any:
    stub = root_service_pb2_grpc.RootServiceStub(channel)
    return stub.ListRoots(root_service_pb2.ListRootsRequest(), timeout=10)


def _scan(channel: grpc.aio.Channel) -> Any:
    request = scan_service_pb2.ScanTreeRequest(tree=Tree(root=ROOT))
    return scan_grpc.ScanServiceStub(channel).ScanTree(request)


_OPTIONS = embed_pb2.EmbedOptions(purpose=embed_pb2.PURPOSE_DOCUMENT)
_MODEL = f"models/{MODEL.partition(':')[0]}"


def _embedded(channel: grpc.aio.Channel) -> Any:
    request = embed_pb2.EmbedRequest(model=_MODEL, options=_OPTIONS, texts=["def f(): pass"])
    return embed_grpc.EmbedServiceStub(channel).Embed(request, timeout=10)


def _embed_many(channel: grpc.aio.Channel) -> Any:
    async def texts() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        for number in range(_TEXTS):
            yield embed_pb2.EmbedStreamRequest(
                id=number, model=_MODEL, options=_OPTIONS, text=f"x = {number}"
            )

    return embed_grpc.EmbedServiceStub(channel).EmbedStream(texts())


def _listed_workspaces(channel: grpc.aio.Channel) -> Any:
    stub = workspaces_grpc.WorkspaceServiceStub(channel)
    return stub.ListWorkspaces(workspaces_pb2.ListWorkspacesRequest(), timeout=10)


def _check(channel: grpc.aio.Channel) -> Any:
    request = maintenance_pb2.CheckIndexRequest(parent=f"workspaces/{_NAME}", sample_ratio=1)
    return maintenance_grpc.MaintenanceServiceStub(channel).CheckIndex(request)


_TARGETS = {
    "io": Target(lambda cluster: cluster.io, _listed_roots, _scan),
    "embed": Target(lambda cluster: cluster.embed, _embedded, _embed_many, _UNREAD_VECTORS),
    "indexer": Target(lambda cluster: cluster.indexers[0], _listed_workspaces, _check),
}


@pytest.fixture(scope="module")
def shared_cluster(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """All services on ports, over a tree whose scan fills a stream's window."""
    for number in range(_FILES):
        path = roots / "wide" / f"d{number % 40}" / f"{'n' * 100}{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n", encoding="utf-8")
    write_generated(roots / _NAME, _NAME)
    cluster = make_cluster(folder, roots, *urls, replicas=1, on_ports=True)
    cluster.start()
    asyncio.run(_indexed(cluster))
    yield cluster
    for target in _TARGETS.values():
        assert target.member(cluster).terminate() == 0
    cluster.kill()


@pytest.fixture(scope="module")
def twins(shared_cluster: Cluster) -> Iterator[dict[str, Member]]:
    """One more of each service, which nobody dawdles with."""
    made = {
        name: replace(
            target.member(shared_cluster),
            name=f"twin-{name}",
            port=port,
            starts=0,
            lock=threading.Lock(),
            process=None,
        )
        for (name, target), port in zip(_TARGETS.items(), free_ports(len(_TARGETS)), strict=True)
    }
    for twin in made.values():
        twin.start()
    yield made
    for twin in made.values():
        twin.kill()


async def _indexed(cluster: Cluster) -> None:
    async with caller(cluster) as calls:
        await calls.create(_NAME, _NAME)
        assert (await calls.run(_NAME))["state"] == "succeeded"


def opened(member: Member, first: bytes = b"") -> socket.socket:
    """Returns a connection that has sent something."""
    connection = socket.create_connection(("127.0.0.1", member.port), timeout=10)
    connection.sendall(first)
    return connection


async def timed_calls(target: Target, *members: Member) -> list[list[float]]:
    """Returns the seconds that small calls to each took within a window, in turn."""
    times: list[list[float]] = [[] for _ in members]
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(member.address))
            for member in members
        ]
        end = time.monotonic() + _WINDOW_SECONDS
        while time.monotonic() < end:
            for channel, taken in zip(channels, times, strict=True):
                begin = time.perf_counter()
                await target.call(channel)
                taken.append(time.perf_counter() - begin)
                await asyncio.sleep(0)
    return times


async def p99_of_windows(
    window: Callable[[], Awaitable[list[list[float]]]],
) -> tuple[float, float]:
    """Returns the 99th percentile of the calls of all windows to a service, and to its twin.

    As many windows are taken as it needs until the first is held to be near the second, and
    at most `_MOST_WINDOWS`: more of them bring closer what the machine alone keeps apart.
    """
    times: list[list[float]] = [[], []]
    for number in range(1, _MOST_WINDOWS + 1):
        for calls, more in zip(times, await window(), strict=True):
            calls.extend(more)
        found, twin = (sorted(taken)[int(len(taken) * 0.99)] for taken in times)
        if number >= _WINDOWS and near(found, twin):
            break
    return found, twin


def near(found: float, twin: float) -> bool:
    """Tells whether a 99th percentile is under twice that of the twin, or the floor."""
    return found < max(2 * twin, _FLOOR_SECONDS)


def _wanted_seconds(process: psutil.Process) -> float:
    """Returns for how long the threads of a process, and of its children, ran or had to wait."""
    wanted = 0
    for each in (process, *process.children(recursive=True)):
        for path in Path(f"/proc/{each.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                ran, waited, _ = path.read_text("ascii").split()
                wanted += int(ran) + int(waited)
    return wanted / 1e9


async def _worked_off(process: psutil.Process) -> None:
    """Waits until a service has done what it was sent before it held its clients back."""
    deadline = time.monotonic() + _BURST_SECONDS
    wanted = _REST
    while wanted >= _REST:
        assert time.monotonic() < deadline, f"{wanted:.0%} of a processor"
        begin, before = time.monotonic(), _wanted_seconds(process)
        await asyncio.sleep(_LOOK_SECONDS)
        wanted = (_wanted_seconds(process) - before) / (time.monotonic() - begin)


async def dawdle(connections: list[socket.socket]) -> None:
    """Sends the preface of HTTP/2 on each connection, a byte a second."""
    for byte in _PREFACE:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(bytes([byte]))
        await asyncio.sleep(1)


async def _until_connected(member: Member) -> None:
    deadline = time.monotonic() + _BURST_SECONDS
    while member.descriptors() < _IDLE:
        assert time.monotonic() < deadline, member.descriptors()
        await asyncio.sleep(0.05)


async def _timed_beside_silent(target: Target, member: Member, twin: Member) -> list[list[float]]:
    """Returns the seconds of calls to both while clients of one of them dawdle or say nothing."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(opened(member)) for _ in range(_IDLE)]
        for _ in range(_DAWDLING):
            half = _PREFACE + _SETTINGS_FRAME + _HEADERS_CUT_SHORT
            stack.enter_context(opened(member, half))
        dawdling = asyncio.create_task(dawdle(connections[:_DAWDLING]))
        await _until_connected(member)
        found = await timed_calls(target, member, twin)
        dawdling.cancel()
    return found


@pytest.mark.parametrize("service", _TARGETS)
async def test_slow_clients_cost_a_good_one_little(
    cluster: Cluster, twins: dict[str, Member], service: str
) -> None:
    """Planted once: calls beside many others that are slow but for one second of three."""
    target = _TARGETS[service]
    member, twin = target.member(cluster), twins[service]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * _IDLE)), hard))
    process = psutil.Process(member.pid)
    await timed_calls(target, member, twin)  # warms both sides
    before = process.memory_info().rss

    async with grpc.aio.insecure_channel(member.address, options=_SMALL_WINDOWS) as channel:
        unread = [target.stream(channel) for _ in range(target.unread)]
        for call in unread:
            await call.initial_metadata()
        await _worked_off(process)
        streamed = process.memory_info().rss
        # What does not shake hands is hung up on after ten seconds: others come for each window.
        beside = await p99_of_windows(lambda: _timed_beside_silent(target, member, twin))
        connected = process.memory_info().rss
        for call in unread:
            call.cancel()

    assert near(*beside), beside
    assert streamed - before < _FLAT_BYTES
    assert connected - streamed < _CONNECTED_BYTES
    after = await p99_of_windows(lambda: timed_calls(target, member, twin))
    assert near(*after), after
    deadline = time.monotonic() + 15
    while member.descriptors() > _DAWDLING:
        assert time.monotonic() < deadline, member.descriptors()
        await asyncio.sleep(0.1)
