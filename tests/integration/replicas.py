"""Two replicas' stores over one database, without services: every step is the test's own."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.indexer.ledger import RunLedger
from services.indexer.model import (
    EmbeddedContent,
    EmbedModel,
    NodeKind,
    ParsedFile,
    ParsedNode,
    Signature,
    Tree,
)
from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning, RunSpec
from services.indexer.storage.files import FileStore
from services.indexer.storage.model_queue import ModelQueue
from services.indexer.storage.nodes import NodeQueue
from services.indexer.storage.workspace_models import WorkspaceModels
from services.indexer.storage.workspaces import WorkspaceStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from services.indexer.model import ClaimedNode, RegisteredModel, Workspace
    from services.indexer.run import Run
    from services.indexer.storage.database import Database

DIMENSIONS = 4
MODEL = EmbedModel("models/test", "f" * 64, DIMENSIONS, 256, 64)
LEASE_SECONDS = 30.0
_WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@dataclass
class Replica:
    """The stores of one process."""

    database: Database
    ledger: RunLedger
    files: FileStore
    nodes: NodeQueue
    workspaces: WorkspaceStore
    model_nodes: ModelQueue
    models: WorkspaceModels

    async def take(self, max_attempts: int = 10) -> Run:
        """Takes a run, which must be there."""
        run = await self.ledger.take(max_attempts)
        assert run is not None
        return run

    async def queue(
        self,
        workspace: Workspace,
        mode: RunMode = RunMode.INCREMENTAL,
        if_running: IfRunning = IfRunning.JOIN,
        **spec: Any,
    ) -> Run:
        """Queues a run."""
        wanted = RunSpec(mode=mode, **spec)
        run, _ = await self.ledger.create(workspace.id, uuid.uuid4(), wanted, if_running)
        return run

    async def apply(self, run: Run, model: RegisteredModel, *files: ParsedFile) -> None:
        """Stores parsed files."""
        await self.files.apply(run, model.id, "recipe", files, 0.0)

    async def complete(self, run: Run, model: RegisteredModel, nodes: Sequence[ClaimedNode]) -> int:
        """Stores a vector for each claimed node; returns how many nodes that ended."""
        queue = self.nodes if run.model_id is None else self.model_nodes
        contents = {
            node.content_hash: content(node.content_hash, model.dimensions) for node in nodes
        }
        done = await queue.complete(run, model.id, contents, nodes, {})
        return done.nodes_embedded + done.nodes_reused

    async def value(self, sql: str, *arguments: Any) -> Any:
        """Returns one value of the database."""
        async with self.database.connection() as connection:
            return await connection.fetchval(sql, *arguments)


async def until_waiting(
    ask: Callable[[str], Awaitable[int]], callers: int = 1, unless: Callable[[], bool] | None = None
) -> None:
    """Waits until as many connections wait for another's lock, or `unless` is true.

    `ask` returns a value of the database.
    """
    async with asyncio.timeout(10):
        while not (unless and unless()) and await ask(_WAITING) < callers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def replica(database: Database) -> Replica:
    """Returns a replica of an owner of its own."""
    owner = uuid.uuid4()
    ledger = RunLedger(database, owner, LEASE_SECONDS)
    return Replica(
        database,
        ledger,
        FileStore(database, ledger),
        NodeQueue(database, ledger, owner, LEASE_SECONDS),
        WorkspaceStore(database),
        ModelQueue(database, ledger, owner, LEASE_SECONDS),
        WorkspaceModels(database, ledger),
    )


async def workspace_with_model(
    stores: Replica, name: str = "tree"
) -> tuple[Workspace, RegisteredModel]:
    """Returns a workspace whose model is active, as after a first run that found no file."""
    workspace, _ = await stores.workspaces.create(name, Tree("roots/trees", name), "")
    model = await stores.workspaces.register_model(MODEL)
    await stores.queue(workspace)
    run = await stores.take()
    await stores.workspaces.activate(run, model, stores.ledger)
    await stores.ledger.finish(run, None)
    return workspace, model


def content_hash(text: str) -> bytes:
    """Returns a hash that stands for a text."""
    return text.encode().ljust(32, b"\0")[:32]


def content(text_hash: bytes, dimensions: int = DIMENSIONS) -> EmbeddedContent:
    """Returns what a text became."""
    vector = bytes([0, 0x3C]) * dimensions  # ones, as float16
    return EmbeddedContent(text_hash, vector, 3, truncated=False, terms={"work": 2, "x": 1})


def parsed_node(text: str, *, name: str = "", start: int = 0, part: int = 0) -> ParsedNode:
    """Returns a function with a text."""
    return ParsedNode(
        kind=NodeKind.FUNCTION,
        qualified_name=name or text,
        parent=None,
        start_byte=start,
        end_byte=start + 10,
        start_line=1,
        end_line=2,
        segments=None,
        content_hash=content_hash(text),
        part=part,
        part_count=1,
        token_estimate=5,
    )


def parsed_file(path: str, *texts: str) -> ParsedFile:
    """Returns a file of functions."""
    return ParsedFile(
        path=path,
        digest=content_hash(f"{path}{texts}"),
        signature=Signature(1, 2, 3, 4, settled=True),
        language="python",
        line_count=9,
        has_syntax_errors=False,
        nodes=tuple(parsed_node(text, start=10 * i) for i, text in enumerate(texts)),
    )
