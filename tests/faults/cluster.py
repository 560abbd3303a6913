"""io, embed and several indexers as processes over one database, and calls to any of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import asyncpg
import grpc

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import search_service_pb2_grpc as search_grpc
from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from lodestone.indexer.v1 import workspace_service_pb2_grpc as workspaces_grpc
from lodestone.io.v1 import tree_pb2
from tests.faults.members import Member

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

LEASE_SECONDS = 1.0
REAP_SECONDS = 0.75
"""How often the dispatcher looks for runs whose owner is gone."""

LATE_SECONDS = REAP_SECONDS + 2.0
"""Longest time by the database's clock that a run stands there, its lease over and a replica ready:
the look, and two seconds for a machine that is busy."""

CALL_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
ROOT = "roots/trees"
MODEL = "hashing:64"
_POLL_SECONDS = 0.02
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNKNOWN,
}

Mode = runs_pb2.IndexRun.Mode


@dataclass
class Cluster:
    """The processes of one installation."""

    folder: Path
    """For sockets and logs; its path is short."""

    roots: Path
    """The folder that holds the trees."""

    url: str
    io: Member
    embed: Member
    indexers: list[Member]
    reference: Member
    """An indexer over a database of its own that nothing disturbs: what it makes is the truth."""

    reference_url: str
    more: list[Member] = field(default_factory=list)
    """Further replicas of io and embed."""

    @property
    def members(self) -> list[Member]:
        """The processes that a test may disturb."""
        return [self.io, self.embed, *self.more, *self.indexers]

    def start(self) -> None:
        """Starts what does not run, all at once."""
        started = [item for item in (*self.members, self.reference) if not item.alive]
        for member in started:
            member.spawn()
        for member in started:
            member.wait_ready()

    def kill(self) -> None:
        """Ends every process."""
        for member in (*self.members, self.reference):
            member.kill()


def make_cluster(
    folder: Path,
    roots: Path,
    url: str,
    reference_url: str,
    *,
    replicas: int = 2,
    of_each: int = 1,
    on_ports: bool = False,
    indexer: Mapping[str, str] | None = None,
) -> Cluster:
    """Returns a cluster that is not started.

    With several of each service, or `on_ports`, all listen on ports of loopback; who calls several
    balances.
    """
    count = 2 * of_each + replicas
    ports = free_ports(count) if on_ports or of_each > 1 else [0] * count
    io_settings = {"IO_ROOTS": f"trees={roots}", "IO_PARSE_WORKERS": "1", "IO_DRAIN_SECONDS": "2"}
    embed_settings = {"EMBED_MODEL": MODEL, "EMBED_DRAIN_SECONDS": "2"}
    ios = [
        Member(f"io{i or ''}", "io", folder, io_settings, port=ports.pop()) for i in range(of_each)
    ]
    embeds = [
        Member(f"embed{i or ''}", "embed", folder, embed_settings, port=ports.pop())
        for i in range(of_each)
    ]
    settings = {
        "DATABASE_URL": url,
        "INDEXER_IO_ADDRESS": balanced(ios),
        "INDEXER_EMBED_ADDRESS": balanced(embeds),
        "INDEXER_LEASE_SECONDS": str(LEASE_SECONDS),
        "INDEXER_EMBED_BATCH_NODES": "8",
        "INDEXER_EMBED_BATCHES_IN_FLIGHT": "2",
        "INDEXER_PARSE_BATCH_FILES": "8",
        "INDEXER_DATABASE_CONNECTIONS": "6",
        "INDEXER_DATABASE_TIMEOUT_SECONDS": "5",
        "INDEXER_DRAIN_SECONDS": "3",
        "INDEXER_DEPENDENCY_PATIENCE_SECONDS": str(PATIENCE_SECONDS),
        **(indexer or {}),
    }
    calm = {**settings, "DATABASE_URL": reference_url, "INDEXER_EMBED_BATCH_NODES": "128"}
    return Cluster(
        folder,
        roots,
        url,
        ios[0],
        embeds[0],
        [
            Member(f"indexer{i}", "indexer", folder, settings, port=ports.pop())
            for i in range(replicas)
        ],
        Member("reference", "indexer", folder, calm),
        reference_url,
        [*ios[1:], *embeds[1:]],
    )


def balanced(members: Sequence[Member]) -> str:
    """Returns the address of replicas: calls to it are spread over them."""
    if len(members) == 1:
        return members[0].address
    return "ipv4:" + ",".join(member.address for member in members)


def free_ports(count: int) -> list[int]:
    """Returns ports of loopback that nothing listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@dataclass
class Caller:
    """Calls whichever of some indexers answers, and reads in the database how a run is."""

    url: str
    addresses: list[str]
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.channels = [
            grpc.aio.insecure_channel(
                address,
                options=[
                    ("grpc.enable_retries", 0),
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.min_reconnect_backoff_ms", 50),
                    ("grpc.max_reconnect_backoff_ms", 200),
                    ("grpc.use_local_subchannel_pool", 1),
                ],
            )
            for address in self.addresses
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self.channels:
            await channel.close()

    async def call(
        self,
        make: Callable[[grpc.aio.Channel], Awaitable[Any]],
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Any:
        """Returns what the first replica that answers says; `make` must be safe to call again."""
        deadline = time.monotonic() + patience_seconds
        while True:
            for channel in self.channels:
                try:
                    return await make(channel)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _PASSING or time.monotonic() > deadline:
                        raise
            await asyncio.sleep(_POLL_SECONDS)

    async def create(self, workspace: str, directory: str) -> None:
        """Makes a workspace of a folder below the root."""
        request = workspaces_pb2.CreateWorkspaceRequest(
            workspace_id=workspace,
            workspace=workspaces_pb2.Workspace(tree=tree_pb2.Tree(root=ROOT, directory=directory)),
        )
        await self.call(
            lambda channel: workspaces_grpc.WorkspaceServiceStub(channel).CreateWorkspace(
                request, timeout=CALL_SECONDS
            )
        )

    async def set_live(self, workspace: str, *, live: bool = True) -> None:
        """Lets a workspace be watched, or ends that."""
        request = workspaces_pb2.UpdateWorkspaceRequest(name=f"workspaces/{workspace}", live=live)
        await self.call(
            lambda channel: workspaces_grpc.WorkspaceServiceStub(channel).UpdateWorkspace(
                request, timeout=CALL_SECONDS
            )
        )

    async def begin(
        self, workspace: str, mode: Mode.ValueType = Mode.MODE_INCREMENTAL
    ) -> runs_pb2.IndexRun:
        """Queues a run, once, however often it has to be asked for."""
        request = runs_pb2.CreateIndexRunRequest(
            parent=f"workspaces/{workspace}", request_id=str(uuid.uuid4()), mode=mode
        )
        response: runs_pb2.CreateIndexRunResponse = await self.call(
            lambda channel: runs_grpc.IndexRunServiceStub(channel).CreateIndexRun(
                request, timeout=CALL_SECONDS
            )
        )
        return response.index_run

    async def cancel(self, run: runs_pb2.IndexRun) -> None:
        """Asks for the end of a run."""
        request = runs_pb2.CancelIndexRunRequest(name=run.name)
        await self.call(
            lambda channel: runs_grpc.IndexRunServiceStub(channel).CancelIndexRun(
                request, timeout=CALL_SECONDS
            )
        )

    async def search(
        self, workspace: str, query: str, k: int = 10, patience_seconds: float = PATIENCE_SECONDS
    ) -> list[search_pb2.NodeHit]:
        """Searches with the texts of the hits."""
        request = search_pb2.SearchNodesRequest(
            parent=f"workspaces/{workspace}", query=query, page_size=k, with_text=True
        )
        response = await self.call(
            lambda channel: search_grpc.SearchServiceStub(channel).SearchNodes(
                request, timeout=CALL_SECONDS
            ),
            patience_seconds,
        )
        return list(response.hits)

    async def row(self, run: runs_pb2.IndexRun) -> asyncpg.Record | None:
        """Returns a run's row, None while the database does not answer."""
        rows = await fetch(self.url, "SELECT * FROM runs WHERE id = $1", run.name.split("/")[-1])
        return rows[0] if rows else None

    async def wait(
        self,
        run: runs_pb2.IndexRun,
        until: Callable[[asyncpg.Record], bool] = lambda row: row["finished_at"] is not None,
        timeout_seconds: float = 60.0,
    ) -> asyncpg.Record:
        """Returns a run's row once it has ended, or once it is as told."""
        deadline = time.monotonic() + timeout_seconds
        async with contextlib.aclosing(_Watch(self.url)) as watch:
            while True:
                row = await watch.row(run.name.split("/")[-1])
                if row is not None and until(row):
                    return row
                assert row is None or row["finished_at"] is None, dict(row)
                assert time.monotonic() < deadline, await self._state(row)
                await asyncio.sleep(_POLL_SECONDS)

    async def _state(self, row: asyncpg.Record | None) -> str:
        """Returns what there is to see of a run that does not end."""
        nodes = await fetch(
            self.url,
            "SELECT workspace_id, status, attempt, crash_count, lease_owner, lease_until > now(), "
            "available_at > now(), count(*) FROM nodes WHERE status <> 'embedded' "
            "GROUP BY 1, 2, 3, 4, 5, 6, 7",
        )
        backends = await fetch(
            self.url,
            "SELECT state, wait_event, now() - state_change, left(query, 99) FROM pg_stat_activity "
            "WHERE datname = current_database()",
        )
        lines = [dict(row) if row else None, *map(tuple, nodes), *map(tuple, backends)]
        return "not in time: " + "\n".join(map(str, lines))

    async def run(
        self, workspace: str, mode: Mode.ValueType = Mode.MODE_INCREMENTAL
    ) -> asyncpg.Record:
        """Makes a run and returns its row when it has ended."""
        return await self.wait(await self.begin(workspace, mode))


class _Watch:
    """Reads runs over one connection, made again when it is lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None

    async def row(self, run_id: str) -> asyncpg.Record | None:
        """Returns a run's row, None while the database does not answer."""
        try:
            if self._connection is None:
                self._connection = await asyncpg.connect(self._url, timeout=2, command_timeout=2)
            return await self._connection.fetchrow("SELECT * FROM runs WHERE id = $1", run_id)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await self.aclose()
            return None
        except asyncpg.InternalClientError:
            await self.aclose()
            return None

    async def aclose(self) -> None:
        """Lets the connection go."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def fetch(url: str, sql: str, *arguments: Any) -> list[asyncpg.Record]:
    """Returns the rows of a statement."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        rows: list[asyncpg.Record] = await connection.fetch(sql, *arguments)
        return rows
    finally:
        await connection.close()


def caller(cluster: Cluster, only: Iterable[Member] | None = None) -> Caller:
    """Returns a caller of the indexers, or of some of them; use it as a context manager."""
    return Caller(cluster.url, [item.address for item in only or cluster.indexers])


def reference_caller(cluster: Cluster) -> Caller:
    """Returns a caller of the indexer that nothing disturbs."""
    return Caller(cluster.reference_url, [cluster.reference.address])
