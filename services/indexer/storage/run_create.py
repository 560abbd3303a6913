"""New runs: queued once a request, joined or queued behind others as the caller says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from services.indexer.errors import RequestIdReusedError
from services.indexer.model import RunMode
from services.indexer.run_spec import IfRunning, RunSpec
from services.indexer.scope import literal
from services.indexer.storage.run_rows import SELECT_RUNS, run_of
from services.indexer.storage.run_scope import (
    MOST_RETRIED_FILES,
    failed_files,
    give_left,
    give_nodes,
)
from services.runtime.errors import (
    NotFoundError,
    OverloadedError,
    StateConflictError,
)

if TYPE_CHECKING:
    from uuid import UUID

    from services.indexer.model import Run, WorkspaceId
    from services.indexer.storage.database import Connection

MOST_WAITING_RUNS = 100
"""Most unfinished runs of a workspace."""

_INSERT = """
INSERT INTO runs (workspace_id, request_id, request_digest, mode, exclude, paths, priority,
  retry_of)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id
"""


async def create_run(
    connection: Connection,
    workspace_id: WorkspaceId,
    request_id: UUID,
    spec: RunSpec,
    if_running: IfRunning,
) -> tuple[Run, bool]:
    """Returns a run and whether it is new, inside the caller's transaction.

    Raises:
        RequestIdReusedError: the request id came with another request before.
        StateConflictError: another run is not finished, and the new one may not join or wait.
        OverloadedError: too many runs of the workspace wait.
    """
    digest = _digest_of(spec)
    await _lock_workspace(connection, workspace_id)
    if (earlier := await _earlier(connection, workspace_id, request_id, digest)) is not None:
        return earlier, False
    unfinished = await connection.fetch(
        f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.finished_at IS NULL "
        "ORDER BY (r.mode = $2) DESC, r.seq DESC",
        workspace_id,
        spec.mode,
    )
    if unfinished and if_running is IfRunning.JOIN:
        return run_of(unfinished[0]), False
    if unfinished and if_running is IfRunning.FAIL:
        raise StateConflictError(
            "A run of this workspace is not finished.",
            metadata={"state": unfinished[0]["state"], "allowed": "finished"},
        )
    _refuse_too_many(len(unfinished))
    return await _insert(connection, workspace_id, request_id, digest, spec), True


async def create_retry(connection: Connection, run: Run, request_id: UUID) -> tuple[Run, bool]:
    """Queues a run over what is left of a finished one; returns it and whether it is new.

    Args:
        connection: inside a transaction.
        run: the finished run.
        request_id: as for every new run.

    Raises:
        StateConflictError: the run is not finished.
        RequestIdReusedError, OverloadedError: as `create_run`.
    """
    digest = hashlib.sha256(json.dumps(["retry", str(run.id)]).encode()).digest()
    await _lock_workspace(connection, run.workspace_id)
    if (earlier := await _earlier(connection, run.workspace_id, request_id, digest)) is not None:
        return earlier, False
    if run.finished_at is None:
        raise StateConflictError(
            "The run is not finished.", metadata={"state": run.state, "allowed": "finished"}
        )
    waiting = await connection.fetchval(
        "SELECT count(*) FROM runs WHERE workspace_id = $1 AND finished_at IS NULL",
        run.workspace_id,
    )
    _refuse_too_many(waiting)
    spec = RunSpec(run.mode, run.exclude, run.paths, priority=run.priority)
    paths = await failed_files(connection, run)
    if not run.nodes_total_final or len(paths) > MOST_RETRIED_FILES:
        # What is left is not known, or too much to name: the same run again finds it.
        return await _insert(
            connection, run.workspace_id, request_id, digest, spec, retry_of=run.id
        ), True
    # Stars in the name of a file that failed are no glob.
    spec = replace(spec, mode=RunMode.SCOPED, paths=tuple(map(literal, paths)))
    made = await _insert(connection, run.workspace_id, request_id, digest, spec, retry_of=run.id)
    await give_left(connection, made, run)
    return made, True


async def _insert(
    connection: Connection,
    workspace_id: WorkspaceId,
    request_id: UUID,
    digest: bytes,
    spec: RunSpec,
    *,
    retry_of: UUID | None = None,
) -> Run:
    run_id = await connection.fetchval(
        _INSERT,
        workspace_id,
        request_id,
        digest,
        spec.mode,
        list(spec.exclude),
        list(spec.paths),
        spec.priority,
        retry_of,
    )
    if spec.node_ids:
        await give_nodes(connection, workspace_id, run_id, spec.node_ids)
    row = await connection.fetchrow(
        f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = $2", workspace_id, run_id
    )
    assert row is not None
    return run_of(row)


async def _lock_workspace(connection: Connection, workspace_id: WorkspaceId) -> None:
    """Lets in one creator at a time per workspace: the row is the lock."""
    held = await connection.fetchval(
        "SELECT true FROM workspaces WHERE id = $1 FOR NO KEY UPDATE", workspace_id
    )
    if not held:
        raise NotFoundError("The workspace was deleted meanwhile.")


async def _earlier(
    connection: Connection, workspace_id: WorkspaceId, request_id: UUID, digest: bytes
) -> Run | None:
    row = await connection.fetchrow(
        f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.request_id = $2", workspace_id, request_id
    )
    if row is None:
        return None
    if row["request_digest"] != digest:
        raise RequestIdReusedError(
            "This request id was used with another request.",
            metadata={"request_id": str(request_id)},
        )
    return run_of(row)


def _refuse_too_many(waiting: int) -> None:
    if waiting >= MOST_WAITING_RUNS:
        raise OverloadedError(
            "Too many runs of this workspace wait.",
            metadata={"limit": str(MOST_WAITING_RUNS), "queued": str(waiting)},
            retry_after_seconds=5.0,
        )


def _digest_of(spec: RunSpec) -> bytes:
    words = [spec.mode, spec.exclude, spec.paths, spec.node_ids, spec.priority]
    return hashlib.sha256(json.dumps(words).encode()).digest()
