"""What callers ask of a run: pause, resume, cancel; its owner, if it has one, sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.storage.run_end import end_run
from services.indexer.storage.run_rows import SELECT_RUNS, run_of
from services.indexer.transitions import FINISHED_RUN_STATES, OWNED_RUN_STATES, RunState
from services.runtime.errors import NotFoundError, StateConflictError

if TYPE_CHECKING:
    from services.indexer.run import Run
    from services.indexer.storage.database import Connection

_STEP = """
UPDATE runs SET state = $3, updated_at = now(), version = version + 1
WHERE workspace_id = $1 AND id = $2
"""

_CANCEL = """
UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, now()),
  state = CASE WHEN owner IS NULL THEN state ELSE 'cancelling' END,
  updated_at = now(), version = version + 1
WHERE workspace_id = $1 AND id = $2
"""

_PAUSE = {RunState.QUEUED: RunState.PAUSED, RunState.RUNNING: RunState.PAUSING}
_PAUSED = frozenset({RunState.PAUSED, RunState.PAUSING})
_RESUME = {RunState.PAUSED: RunState.QUEUED, RunState.PAUSING: RunState.RUNNING}
_RESUMED = frozenset({RunState.QUEUED, RunState.RUNNING})


async def pause(connection: Connection, run: Run) -> None:
    """Pauses a run that waits, or asks its owner to; inside a transaction.

    Raises:
        StateConflictError: the run is finished, or is being cancelled.
    """
    await _step(connection, run, _PAUSE, _PAUSED)


async def resume(connection: Connection, run: Run) -> None:
    """Puts a paused run back in the queue, or takes the wish for a pause back.

    Raises:
        StateConflictError: the run is finished, or is being cancelled.
    """
    await _step(connection, run, _RESUME, _RESUMED)


async def cancel(connection: Connection, run: Run) -> None:
    """Asks for the end of a run; one that nobody owns ends at once. No effect on ended ones."""
    now = await _locked(connection, run)
    if now.state in FINISHED_RUN_STATES:
        return
    await connection.execute(_CANCEL, run.workspace_id, run.id)
    if now.state not in OWNED_RUN_STATES:
        await end_run(connection, await _locked(connection, run), None)


async def _step(
    connection: Connection,
    run: Run,
    steps: dict[RunState, RunState],
    reached: frozenset[RunState],
) -> None:
    state = (await _locked(connection, run)).state
    if state in reached:
        return
    if state not in steps:
        allowed = sorted({*steps, *reached})
        raise StateConflictError(
            f"The run is {state}.", metadata={"state": state, "allowed": ", ".join(allowed)}
        )
    await connection.execute(_STEP, run.workspace_id, run.id, steps[state])


async def _locked(connection: Connection, run: Run) -> Run:
    row = await connection.fetchrow(
        f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.id = $2 FOR UPDATE OF r",
        run.workspace_id,
        run.id,
    )
    if row is None:
        raise NotFoundError("The run was deleted meanwhile.", metadata={"resource": run.name})
    return run_of(row)
