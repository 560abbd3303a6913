"""The services as processes over a PostgreSQL of their own, with the model that hashes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.faults.cluster import Caller, fetch
from tests.faults.members import Member
from tests.support.postgres import make_reachable_folder
from tests.support.postgres_server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RUN_SECONDS = 1800.0
_MODELS = Path(__file__).parents[2] / "build" / "test-models"


@dataclass
class Rig:
    """What a benchmark measures on."""

    server: Server
    roots: Path
    io: Member
    embed: Member
    indexer: Member

    @property
    def url(self) -> str:
        """The DSN of the database."""
        return self.server.url

    @property
    def pids(self) -> list[int]:
        """The processes, PostgreSQL's postmaster last; their children belong to them."""
        members = (self.io, self.embed, self.indexer)
        return [*(member.pid for member in members), self.server.pid]

    def create(self, workspace: str, directory: str) -> None:
        """Makes a workspace."""
        asyncio.run(self._create(workspace, directory))

    def index(self, workspace: str) -> tuple[float, Mapping[str, Any]]:
        """Makes a run; returns its seconds, from the call to the end, and its row."""
        return asyncio.run(self._index(workspace))

    def rows(self, sql: str, *arguments: Any) -> list[Any]:
        """Returns the rows of a statement."""
        return asyncio.run(fetch(self.url, sql, *arguments))

    def caller(self) -> Caller:
        """Returns a caller of the indexer."""
        return Caller(self.url, [self.indexer.address])

    async def _create(self, workspace: str, directory: str) -> None:
        async with self.caller() as calls:
            await calls.create(workspace, directory)

    async def _index(self, workspace: str) -> tuple[float, Mapping[str, Any]]:
        async with self.caller() as calls:
            started = time.perf_counter()
            run = await calls.begin(workspace)
            row = await calls.wait(run, timeout_seconds=RUN_SECONDS)
            seconds = time.perf_counter() - started
        assert row["state"] == "succeeded", dict(row)
        return seconds, row


@contextlib.contextmanager
def running(
    roots: Path,
    *,
    dimensions: int = 64,
    model: str = "",
    otlp_endpoint: str = "",
    traces_folder: str = "",
    **indexer: str,
) -> Iterator[Rig]:
    """Yields running services that read trees beneath `roots`; `indexer` are settings of its.

    `model` is another than the one that hashes; what it needs is kept for the next time. Spans go
    to an endpoint and a folder that are given.
    """
    folder = Path(tempfile.mkdtemp(prefix="lb-"))
    base = make_reachable_folder()
    server = Server(base)
    io = Member("io", "io", folder, {"IO_ROOTS": f"trees={roots}"})
    embed = Member(
        "embed",
        "embed",
        folder,
        {
            "EMBED_MODEL": model or f"hashing:{dimensions}",
            "EMBED_CACHE_DIR": str(_MODELS),
        },
    )
    settings = {
        "DATABASE_URL": server.url,
        "INDEXER_IO_ADDRESS": io.address,
        "INDEXER_EMBED_ADDRESS": embed.address,
        **{f"INDEXER_{name}": value for name, value in indexer.items()},
    }
    rig = Rig(server, roots, io, embed, Member("indexer", "indexer", folder, settings))
    members = (io, embed, rig.indexer)
    for member in members:
        member.extra = {
            "LODESTONE_OTLP_ENDPOINT": otlp_endpoint,
            "LODESTONE_TRACES_FOLDER": traces_folder,
        }
    try:
        for member in members:
            member.start()
        yield rig
    finally:
        for member in members:
            member.kill()
        server.stop()
        shutil.rmtree(folder)
        shutil.rmtree(base)
