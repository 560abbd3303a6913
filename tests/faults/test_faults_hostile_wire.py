"""T8: malformed HTTP/2 and malformed protobuf crash nothing, and a good client notices nothing.

What is sent is drawn from a seed, so that a failure can be repeated; LODESTONE_TEST_SEEDS sends
more. Methods' names that are not UTF-8 end the loop of grpcio's server, and are sent apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest

from lodestone.embed.v1 import model_service_pb2, model_service_pb2_grpc
from lodestone.indexer.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from lodestone.io.v1 import root_service_pb2, root_service_pb2_grpc
from services.runtime.exits import ExitCode
from tests.faults.cluster import free_ports
from tests.faults.conftest import SEEDS, new_database
from tests.faults.hostile_wire import ATTACKS, unspeakable
from tests.faults.members import Member
from tests.support.contract_fields import SERVICES, end_of, methods_of, start_call
from tests.support.contract_requests import Resources, fill
from tests.support.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import postgres

_AT_ONCE = 16
_ANSWER_SECONDS = 0.2
_CALL_SECONDS = 20
_FLAT_BYTES = 100 << 20
_SPARE_DESCRIPTORS = 16
_END_SECONDS = 30.0
_NO_ANSWERS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
_NAMES = Resources("wire", "workspaces/wire/indexRuns/1", "trees")
_LEFT_OUT = {"WatchTree", "WatchIndexRun"}
"""They answer for as long as nobody hangs up; what they are sent is read as any other request."""


@pytest.fixture(scope="module")
def members(
    folder: Path, roots: Path, database_server: postgres.Database
) -> Iterator[dict[str, Member]]:
    """Each service on a port of its own."""
    url = new_database(database_server)
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    settings = {
        "io": {"IO_ROOTS": f"trees={roots}", "IO_PARSE_WORKERS": "1"},
        "embed": {"EMBED_MODEL": "hashing:64"},
        "indexer": {
            "DATABASE_URL": url,
            "INDEXER_IO_ADDRESS": f"127.0.0.1:{ports['io']}",
            "INDEXER_EMBED_ADDRESS": f"127.0.0.1:{ports['embed']}",
        },
    }
    made = {
        name: Member(f"wire-{name}", name, folder, settings[name], port=ports[name])
        for name in SERVICES
    }
    for member in made.values():
        member.spawn()
    for member in made.values():
        member.wait_ready()
    yield made
    ended = [member.terminate() for member in reversed(made.values())]
    database_server.drop(url)
    assert ended == [0, 0, 0]


@dataclass
class GoodClient:
    """Calls a service all the time; no call of its may fail."""

    member: Member
    calls: int = 0

    async def run(self, until: asyncio.Event) -> None:
        """Calls until told to stop."""
        async with grpc.aio.insecure_channel(self.member.address) as channel:
            while not until.is_set():
                await _good_call(self.member.service, channel)
                self.calls += 1
                await asyncio.sleep(0.005)


async def _good_call(service: str, channel: grpc.aio.Channel) -> None:
    if service == "io":
        roots = root_service_pb2_grpc.RootServiceStub(channel)
        await roots.ListRoots(root_service_pb2.ListRootsRequest(), timeout=_CALL_SECONDS)
    elif service == "embed":
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        await models.ListModels(model_service_pb2.ListModelsRequest(), timeout=_CALL_SECONDS)
    else:
        trees = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        request = workspace_service_pb2.ListWorkspacesRequest()
        await trees.ListWorkspaces(request, timeout=_CALL_SECONDS)


async def _send(member: Member, data: bytes) -> None:
    """Sends bytes on a connection of their own, and reads for a moment what comes back."""
    with contextlib.suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection("127.0.0.1", member.port)
        try:
            writer.write(data)
            async with asyncio.timeout(_ANSWER_SECONDS):
                await writer.drain()
                while await reader.read(65_536):
                    pass
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def unharmed(member: Member) -> Any:
    """Holds a service to its promise while it is attacked: it lives, serves and stays small."""
    process = psutil.Process(member.pid)
    descriptors, memory = member.descriptors(), process.memory_info().rss
    done, client = asyncio.Event(), GoodClient(member)
    calling = asyncio.create_task(client.run(done))
    try:
        yield
    finally:
        done.set()
        await calling
    assert member.alive
    assert client.calls > 0
    assert process.memory_info().rss - memory < _FLAT_BYTES
    await asyncio.to_thread(
        wait_until,
        lambda: member.descriptors() <= descriptors + _SPARE_DESCRIPTORS,
        30,
        "connections to be let go",
    )


@pytest.mark.parametrize("service", sorted(SERVICES))
async def test_broken_http2_harms_nobody(members: dict[str, Member], service: str) -> None:
    member = members[service]
    names = [name for name, _ in methods_of(service)]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def attack(seed: str, kind: Any) -> None:
        draw = random.Random(seed)
        async with slots:
            await _send(member, kind(draw, draw.choice(names)))

    async with unharmed(member), asyncio.TaskGroup() as group:
        for number in range(SEEDS):
            for kind in ATTACKS:
                group.create_task(attack(f"{service} {number} {kind.__name__}", kind))
    assert '"call_failed"' not in member.log


@pytest.mark.parametrize("service", sorted(SERVICES))
async def test_a_service_that_can_take_no_calls_any_more_ends(
    members: dict[str, Member], service: str
) -> None:
    """So that it is started again; red without the look at the server: it lives and answers nobody.

    Another start serves.
    """
    member = members[service]
    name, _ = next(methods_of(service))

    await _send(member, unspeakable(name))
    code = await asyncio.to_thread(member.wait, _END_SECONDS)
    ended = member.log
    await asyncio.to_thread(member.start)

    assert code == ExitCode.FAILED
    assert '"server_loop_lost"' in ended
    async with grpc.aio.insecure_channel(member.address) as channel:
        await _good_call(service, channel)


@pytest.mark.parametrize("service", sorted(SERVICES))
async def test_broken_messages_are_the_caller_s_fault(
    members: dict[str, Member], service: str
) -> None:
    """Random bytes, and good requests with some bytes flipped, cut off or put in."""
    member = members[service]
    slots = asyncio.Semaphore(_AT_ONCE)
    wrong: list[str] = []
    codes: set[grpc.StatusCode] = set()

    async def call(channel: grpc.aio.Channel, name: str, method: Any, seed: int) -> None:
        body = _spoiled(random.Random(f"{name} {seed}"), fill(method, _NAMES).SerializeToString())
        async with slots:
            _, error = await end_of(start_call(channel, name, method, body, seconds=_CALL_SECONDS))
        if error is not None:
            codes.add(error.code())
            if error.code() in _NO_ANSWERS:
                wrong.append(f"{name} seed {seed}: {error.code().name} {error.details()}")

    async with (
        unharmed(member),
        grpc.aio.insecure_channel(member.address) as channel,
        asyncio.TaskGroup() as group,
    ):
        for name, method in methods_of(service):
            if method.name not in _LEFT_OUT:
                for seed in range(SEEDS):
                    group.create_task(call(channel, name, method, seed))
    assert wrong == []
    assert grpc.StatusCode.INVALID_ARGUMENT in codes


def _spoiled(draw: random.Random, body: bytes) -> bytes:
    if draw.random() < 0.2:
        return draw.randbytes(draw.randrange(300))
    spoiled = bytearray(body)
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(spoiled) + 1)
        choice = draw.random()
        if choice < 0.5 and at < len(spoiled):
            spoiled[at] = draw.randrange(256)
        elif choice < 0.75:
            spoiled[at:at] = draw.randbytes(draw.randrange(1, 12))
        else:
            del spoiled[at:]
    return bytes(spoiled)
