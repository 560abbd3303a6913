"""Runs that embed with a model beside the active one: queued, found, and put back for a switch."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from services.indexer.model import TRANSIENT_REASONS
from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning, RunPriority, RunSpec
from services.indexer.storage.run_create import create_run
from services.indexer.storage.run_end import end_run, release_nodes
from services.indexer.storage.run_progress import release
from services.indexer.storage.run_rows import OWNED_STATES, SELECT_RUNS, run_of
from services.indexer.transitions import RunState

if TYPE_CHECKING:
    from services.indexer.model import ModelId, WorkspaceId
    from services.indexer.run import Run
    from services.indexer.storage.database import Connection

_IN_WORK = """
SELECT FROM {table} WHERE workspace_id = $1 AND status = 'processing' ORDER BY {order} FOR UPDATE
"""
_OWNED = f"""
{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.state IN ({OWNED_STATES})
  AND ($2::int IS NULL OR r.model_id = $2)
ORDER BY r.id FOR UPDATE OF r
"""
_UNFINISHED = f"""
{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.model_id = $2 AND r.finished_at IS NULL
ORDER BY r.id FOR UPDATE OF r
"""
_QUEUE = """
INSERT INTO runs (workspace_id, request_id, request_digest, mode, priority, model_id)
SELECT $1, gen_random_uuid(), '', 'embed_only', $3, $2
WHERE NOT EXISTS (SELECT 1 FROM runs WHERE workspace_id = $1 AND finished_at IS NULL
  AND mode = 'embed_only' AND model_id IS NOT DISTINCT FROM $2 AND cancel_requested_at IS NULL)
"""
_WAITING = f"""
{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.finished_at IS NULL AND r.state = 'queued'
  AND r.mode = 'embed_only' AND r.model_id IS NOT DISTINCT FROM $2
ORDER BY r.seq LIMIT 1
"""
_MODELS_LEFT = """
SELECT m.model_id FROM workspace_models m JOIN workspaces w ON w.id = m.workspace_id
WHERE m.workspace_id = $1 AND m.model_id <> w.active_model_id AND (EXISTS (
    SELECT 1 FROM model_nodes q WHERE q.workspace_id = $1 AND q.model_id = m.model_id
      AND q.status = 'pending')
  OR EXISTS (
    SELECT 1 FROM model_nodes q WHERE q.workspace_id = $1 AND q.model_id = m.model_id
      AND q.status = 'failed' AND q.error_reason = ANY ($2)))
"""


async def interrupt(
    connection: Connection, workspace_id: WorkspaceId, model_id: ModelId | None
) -> None:
    """Puts runs that have an owner back in the queue; one that is to be cancelled ends.

    Nodes are locked before runs, as by commits: those in flight end first, later ones are refused.
    """
    for table, order in (("nodes", "id"), ("model_nodes", "model_id, node_id")):
        await connection.execute(_IN_WORK.format(table=table, order=order), workspace_id)
    for row in await connection.fetch(_OWNED, workspace_id, model_id):
        run = run_of(row)
        if run.state is RunState.CANCELLING:
            await end_run(connection, run, None)
        elif await release(connection, run):
            await release_nodes(connection, run)


async def unfinished(
    connection: Connection, workspace_id: WorkspaceId, model_id: ModelId
) -> list[Run]:
    """Returns a model's unfinished runs, locked."""
    return [run_of(row) for row in await connection.fetch(_UNFINISHED, workspace_id, model_id)]


async def queue(
    connection: Connection, workspace_id: WorkspaceId, model_id: ModelId | None
) -> None:
    """Queues a run that embeds what waits, unless one of the model waits or is at work.

    One that is being cancelled does not count: it leaves what waits.
    """
    await connection.execute(_QUEUE, workspace_id, model_id, _priority_of(model_id))


async def queue_behind(
    connection: Connection, workspace_id: WorkspaceId, model_id: ModelId | None
) -> Run:
    """Returns a run that embeds what waits and is not at work yet: one that is there, or a new one.

    One that is at work may have looked for the last time. Inside a transaction that has the
    workspace locked.

    Raises:
        OverloadedError: too many runs of the workspace wait.
    """
    row = await connection.fetchrow(_WAITING, workspace_id, model_id)
    if row is not None:
        return run_of(row)
    spec = RunSpec(mode=RunMode.EMBED_ONLY, priority=_priority_of(model_id), model_id=model_id)
    run, _ = await create_run(connection, workspace_id, uuid4(), spec, IfRunning.QUEUE)
    return run


def _priority_of(model_id: ModelId | None) -> RunPriority:
    """Returns who goes first; None stands for the active model, whose nodes searches wait for."""
    return RunPriority.NORMAL if model_id is None else RunPriority.BACKGROUND


async def queue_left(connection: Connection, workspace_id: WorkspaceId) -> None:
    """Queues a run for each model beside the active one that nodes wait for.

    After runs over files alone: a model whose run failed would begin again for ever.
    """
    for row in await connection.fetch(_MODELS_LEFT, workspace_id, list(TRANSIENT_REASONS)):
        await queue(connection, workspace_id, row["model_id"])
