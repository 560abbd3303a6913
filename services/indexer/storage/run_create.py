"""New runs: queued once a request, joined or queued behind others as the caller says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from services.indexer.errors import RequestIdReusedError
from services.indexer.run import RunMode
from services.indexer.run_spec import IfRunning, RunSpec, RunTrigger, covers
from services.indexer.storage.model_rows import find_model, lock_workspace, require_model
from services.indexer.storage.run_rows import SELECT_RUNS, run_of
from services.indexer.storage.run_scope import (
    MOST_RETRIED_FILES,
    failed_files,
    give_given,
    give_left,
    give_nodes,
)
from services.runtime.call_traces import current_traceparent
from services.runtime.errors import (
    NotFoundError,
    OverloadedError,
    StateConflictError,
)
from services.runtime.globs import escape_glob

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from services.indexer.model import WorkspaceId
    from services.indexer.run import Run
    from services.indexer.storage.database import Connection

MOST_WAITING_RUNS = 100
"""Most unfinished runs of a workspace."""

_INSERT = """
INSERT INTO runs (workspace_id, request_id, request_digest, mode, exclude, paths, priority,
  retry_of, trigger, changed_at, model_id, traceparent)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() - make_interval(secs => $10), $11, $12)
RETURNING id
"""

_NOTE_JOIN = """
INSERT INTO run_requests (workspace_id, request_id, request_digest, run_id) VALUES ($1, $2, $3, $4)
"""
_GIVES_ALL = """
SELECT NOT EXISTS (SELECT 1 FROM unnest($3::bigint[]) x (id) WHERE NOT EXISTS (
  SELECT 1 FROM run_nodes WHERE workspace_id = $1 AND run_id = $2 AND node_id = x.id AND given))
"""
_EARLIER = f"""
SELECT e.digest AS earlier_digest, f.* FROM (
  SELECT id AS run_id, request_digest AS digest FROM runs
  WHERE workspace_id = $1 AND request_id = $2
  UNION ALL
  SELECT run_id, request_digest FROM run_requests WHERE workspace_id = $1 AND request_id = $2) e,
LATERAL ({SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = e.run_id) f LIMIT 1
"""
"""The run that a request made, or the one that it joined."""


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
        NotFoundError: the workspace was deleted, or has no model that was asked for.
        OverloadedError: too many runs of the workspace wait.
    """
    digest = _digest_of(spec)
    await _let_in(connection, workspace_id)
    if (earlier := await _earlier(connection, workspace_id, request_id, digest)) is not None:
        return earlier, False
    spec = await _with_model(connection, workspace_id, spec)
    unfinished = await connection.fetch(
        f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.finished_at IS NULL "
        "AND r.model_id IS NOT DISTINCT FROM $3 ORDER BY (r.mode = $2) DESC, r.seq DESC",
        workspace_id,
        spec.mode,
        spec.model_id,
    )
    # A watcher's run over changes is short and another's business: who comes then waits for it.
    others = [row for row in unfinished if row["trigger"] != RunTrigger.CHANGES]
    # One that is being cancelled does nothing more of what is asked.
    going_on = [run_of(row) for row in others if row["cancel_requested_at"] is None]
    runs = going_on if if_running is IfRunning.JOIN else []
    if (joined := await _covering(connection, runs, spec)) is not None:
        await connection.execute(_NOTE_JOIN, workspace_id, request_id, digest, joined.id)
        return joined, False
    if others and if_running is IfRunning.FAIL:
        raise StateConflictError(
            "A run of this workspace is not finished.",
            metadata={"state": others[0]["state"], "allowed": "finished"},
        )
    _refuse_too_many(len(unfinished))
    return await _insert(connection, workspace_id, request_id, digest, spec), True


async def _covering(connection: Connection, runs: Sequence[Run], spec: RunSpec) -> Run | None:
    """Returns the first run that does all that is asked for, or None."""
    for run in runs:
        if not covers(run, spec):
            continue
        if not spec.node_ids or await connection.fetchval(
            _GIVES_ALL, run.workspace_id, run.id, list(spec.node_ids)
        ):
            return run
    return None


async def create_retry(connection: Connection, run: Run, request_id: UUID) -> tuple[Run, bool]:
    """Queues a run over what is left of a finished one; returns it and whether it is new.

    Args:
        connection: inside a transaction.
        run: the finished run.
        request_id: as for every new run.

    Raises:
        StateConflictError: the run is not finished.
        NotFoundError: its model is none of the workspace's any more.
        RequestIdReusedError, OverloadedError: as `create_run`.
    """
    digest = hashlib.sha256(json.dumps(["retry", str(run.id)]).encode()).digest()
    await _let_in(connection, run.workspace_id)
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
    spec = RunSpec(run.mode, run.exclude, run.paths, priority=run.priority, model_id=run.model_id)
    spec = await _with_model(connection, run.workspace_id, spec)
    paths = await failed_files(connection, run)
    if not run.nodes_total_final or len(paths) > MOST_RETRIED_FILES or run.model_id is not None:
        # What is left is not known, or too much to name: the same run again finds it.
        made = await _insert(
            connection, run.workspace_id, request_id, digest, spec, retry_of=run.id
        )
        await give_given(connection, made, run)
        return made, True
    # Stars in the name of a file that failed are no glob.
    spec = replace(spec, mode=RunMode.SCOPED, paths=tuple(map(escape_glob, paths)))
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
        spec.trigger,
        spec.change_age_seconds,
        spec.model_id,
        current_traceparent(),
    )
    if spec.node_ids:
        await give_nodes(connection, workspace_id, run_id, spec.node_ids)
    row = await connection.fetchrow(
        f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = $2", workspace_id, run_id
    )
    assert row is not None
    return run_of(row)


async def _let_in(connection: Connection, workspace_id: WorkspaceId) -> None:
    """Lets in one creator at a time per workspace."""
    if not await lock_workspace(connection, workspace_id):
        raise NotFoundError("The workspace was deleted meanwhile.")


async def _with_model(connection: Connection, workspace_id: WorkspaceId, spec: RunSpec) -> RunSpec:
    """Returns what a run is to do with the model that it names looked up, None for the active one.

    The workspace is locked: no switch comes between this and the new run. Raises NotFoundError.
    """
    if spec.model:
        wanted = await find_model(connection, workspace_id, spec.model)
    elif spec.model_id is not None:
        await require_model(connection, workspace_id, wanted := spec.model_id)
    else:
        return spec
    active = await connection.fetchval(
        "SELECT active_model_id FROM workspaces WHERE id = $1", workspace_id
    )
    return replace(spec, model_id=None if wanted == active else wanted)


async def _earlier(
    connection: Connection, workspace_id: WorkspaceId, request_id: UUID, digest: bytes
) -> Run | None:
    row = await connection.fetchrow(_EARLIER, workspace_id, request_id)
    if row is None:
        return None
    if row["earlier_digest"] != digest:
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
    if spec.model:
        words.append(spec.model)
    return hashlib.sha256(json.dumps(words).encode()).digest()
