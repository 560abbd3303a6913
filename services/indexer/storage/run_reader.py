"""Reads the ledger: runs and their outcomes, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.run import OutcomeResult
from services.indexer.storage.run_rows import SELECT_RUNS, outcome_of, run_of
from services.runtime.access import visible_workspaces
from services.runtime.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from services.indexer.model import WorkspaceId
    from services.indexer.run import Outcome, Run
    from services.indexer.storage.database import Database

OUTCOMES = """
SELECT * FROM run_outcomes
WHERE workspace_id = $1 AND run_id = $2
  AND (path, entity, node_id) > ($3, $4, $5)
  AND (cardinality($6::text[]) = 0 OR result = ANY ($6)) {only}
ORDER BY path, entity, node_id LIMIT $7
"""
FAILURES_ALONE = "AND result IN ('failed', 'timeout', 'stale')"
"""Says to the planner that the index of failures has all that is asked for."""

_FAILURES = frozenset({OutcomeResult.FAILED, OutcomeResult.TIMEOUT, OutcomeResult.STALE})


class RunReader:
    """Returns what the ledger holds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, workspace_name: str, run_id: UUID) -> Run:
        """Returns a run. Raises NotFoundError."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"{SELECT_RUNS} WHERE w.name = $1 AND r.id = $2", workspace_name, run_id
            )
        if row is None:
            name = f"workspaces/{workspace_name}/indexRuns/{run_id}"
            raise NotFoundError(f"There is no run {name}.", metadata={"resource": name})
        return run_of(row)

    async def page(
        self, workspace_id: WorkspaceId | None, before_seq: int, limit: int
    ) -> list[Run]:
        """Returns runs, newest first, those older than a sequence number; the caller's alone."""
        async with self._database.connection() as connection:
            if workspace_id is None:
                rows = await connection.fetch(
                    f"{SELECT_RUNS} WHERE r.seq < $1 "
                    "AND ($3::text[] IS NULL OR w.name LIKE ANY ($3)) "
                    "ORDER BY r.seq DESC LIMIT $2",
                    before_seq,
                    limit,
                    visible_workspaces(),
                )
            else:
                rows = await connection.fetch(
                    f"{SELECT_RUNS} WHERE r.workspace_id = $1 AND r.seq < $2 "
                    "ORDER BY r.seq DESC LIMIT $3",
                    workspace_id,
                    before_seq,
                    limit,
                )
        return [run_of(row) for row in rows]

    async def outcomes(
        self, run: Run, results: Sequence[str], after: tuple[str, str, int], limit: int
    ) -> list[Outcome]:
        """Returns outcomes in path order, those after (path, entity, node id)."""
        only = FAILURES_ALONE if results and _FAILURES.issuperset(results) else ""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                OUTCOMES.format(only=only), run.workspace_id, run.id, *after, list(results), limit
            )
        return [outcome_of(row) for row in rows]
