"""The nodes of a scoped run: which they are, and counts of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from services.indexer.run import RunCounters
from services.indexer.transitions import NodeStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from services.indexer.model import FileId, WorkspaceId
    from services.indexer.run import Run
    from services.indexer.storage.database import Connection

_SCOPE = """(SELECT n.* FROM run_nodes s JOIN nodes n ON n.workspace_id = s.workspace_id
  AND n.id = s.node_id WHERE s.workspace_id = $1 AND s.run_id = $2) n"""

_OF_MODEL = """(SELECT n.workspace_id, n.id, coalesce(q.status, 'embedded') AS status,
    NULL::uuid AS embedded_run FROM nodes n
  LEFT JOIN model_nodes q ON q.workspace_id = n.workspace_id AND q.model_id = {model}
    AND q.node_id = n.id) n"""

_LEFT_OF_MODEL = """(SELECT n.workspace_id, n.id, n.file_id, n.qualified_name, q.status,
    q.available_at, q.attempt, q.error_reason, q.error_message, q.error_stage FROM model_nodes q
  JOIN nodes n ON n.workspace_id = q.workspace_id AND n.id = q.node_id
  WHERE q.workspace_id = $1 AND q.model_id = {model}) n"""

_KEEP_EMBEDDED = """
UPDATE runs SET nodes_embedded = least($3, nodes_reused),
  nodes_reused = nodes_reused - least($3, nodes_reused)
WHERE workspace_id = $1 AND id = $2
"""

_BASELINE = """
UPDATE runs SET (nodes_total, nodes_embedded, nodes_reused, nodes_failed, nodes_pending) = (
  SELECT count(*), count(*) FILTER (WHERE status = 'embedded' AND embedded_run = $2),
    count(*) FILTER (WHERE status = 'embedded' AND embedded_run IS DISTINCT FROM $2),
    count(*) FILTER (WHERE status = 'failed'),
    count(*) FILTER (WHERE status IN ('pending', 'processing'))
  FROM {nodes} WHERE n.workspace_id = $1)
WHERE workspace_id = $1 AND id = $2
"""

_GIVE = """
INSERT INTO run_nodes (workspace_id, run_id, node_id, given)
SELECT $1, $2, n.id, true FROM nodes n
WHERE n.workspace_id = $1 AND n.id = ANY ($3::bigint[])
ON CONFLICT DO NOTHING
"""

_GIVE_LEFT = """
INSERT INTO run_nodes (workspace_id, run_id, node_id, given)
SELECT $1, $3, n.id, true FROM {nodes}
WHERE n.workspace_id = $1 AND n.status IN ('pending', 'processing', 'failed')
  AND (n.status <> 'failed' OR EXISTS (SELECT 1 FROM run_outcomes o
    WHERE o.workspace_id = $1 AND o.run_id = $2 AND o.entity = 'node' AND o.node_id = n.id))
ON CONFLICT DO NOTHING
"""

_GIVE_GIVEN = """
INSERT INTO run_nodes (workspace_id, run_id, node_id, given)
SELECT workspace_id, $3, node_id, true FROM run_nodes
WHERE workspace_id = $1 AND run_id = $2 AND given
"""

_FAILED_FILES = """
SELECT path FROM run_outcomes
WHERE workspace_id = $1 AND run_id = $2 AND entity = 'file' AND result IN ('failed', 'timeout')
ORDER BY path LIMIT $3
"""

_COVER = """
WITH added AS (
  INSERT INTO run_nodes (workspace_id, run_id, node_id, given)
  SELECT $1, $2, n.id, false FROM files f
  JOIN nodes n ON n.workspace_id = f.workspace_id AND n.file_id = f.id
  WHERE f.workspace_id = $1 AND {which}
  ON CONFLICT DO NOTHING RETURNING node_id)
SELECT n.status, count(*) AS count FROM nodes n JOIN added a ON a.node_id = n.id
WHERE n.workspace_id = $1 GROUP BY n.status
"""

_TRY_AGAIN = """
UPDATE nodes n SET status = 'pending', attempt = 0, crash_count = 0, available_at = now(),
  error_reason = NULL, error_message = NULL, updated_at = now(), status_since = now()
FROM files f
WHERE n.workspace_id = $1 AND n.status = 'failed' AND f.workspace_id = $1 AND f.id = n.file_id
  AND {which}
"""

NOT_THERE = "nodes are not in the workspace."
"""Ends a warning that a run is made with; all others come from its scan."""

_BY_PATH = "f.path = ANY ($3::text[])"
_BY_FILE = "f.id = ANY ($3::bigint[])"
MOST_RETRIED_FILES = 10_000
"""Most files of one scope; what is left of a run with more is all of it."""


def queue_of(run: Run) -> dict[str, str]:
    """Returns the table that a run claims in, its column of nodes, and what tells its rows."""
    if run.model_id is None:
        return {"queue": "nodes", "id": "id", "only": ""}
    return {
        "queue": "model_nodes",
        "id": "node_id",
        "only": f"AND model_id = {int(run.model_id)}",
    }


def counted_nodes(run: Run) -> str:
    """Returns what a run counts, as `n`: the nodes of its workspace, of its scope, or of its model.

    Whoever uses it gives the run's key as $1 and $2.
    """
    if run.model_id is not None:
        return _OF_MODEL.format(model=int(run.model_id))
    return _SCOPE if run.is_scoped else "nodes n"


def unfinished_nodes(run: Run) -> str:
    """Returns, as `counted_nodes`, at least those nodes that are not embedded."""
    if run.model_id is not None:
        return _LEFT_OF_MODEL.format(model=int(run.model_id))
    return counted_nodes(run)


async def set_baseline(connection: Connection, run: Run) -> None:
    """Starts a run's progress from what the tables hold of what it covers."""
    key = run.workspace_id, run.id
    embedded = await connection.fetchval(
        "SELECT nodes_embedded FROM runs WHERE workspace_id = $1 AND id = $2", *key
    )
    await connection.execute(_BASELINE.format(nodes=counted_nodes(run)), *key)
    if run.model_id is not None:  # its vectors do not tell which run they are of
        await connection.execute(_KEEP_EMBEDDED, *key, embedded)


async def give_nodes(
    connection: Connection, workspace_id: WorkspaceId, run_id: UUID, nodes: Sequence[int]
) -> None:
    """Puts nodes into a new run's scope; ids of another workspace, or of none, are left out."""
    given = await connection.execute(_GIVE, workspace_id, run_id, list(nodes))
    missing = len(set(nodes)) - int(given.rpartition(" ")[2])
    if missing:
        await connection.execute(
            "UPDATE runs SET warnings = warnings || $3::text WHERE workspace_id = $1 AND id = $2",
            workspace_id,
            run_id,
            f"{missing} of {len(set(nodes))} {NOT_THERE}",
        )


async def give_left(connection: Connection, run: Run, finished: Run) -> None:
    """Puts what is left of a finished run into the scope of one that retries it."""
    await connection.execute(
        _GIVE_LEFT.format(nodes=unfinished_nodes(finished)),
        finished.workspace_id,
        finished.id,
        run.id,
    )


async def give_given(connection: Connection, run: Run, finished: Run) -> None:
    """Puts the nodes that a finished run was given into the scope of one that does it again."""
    await connection.execute(_GIVE_GIVEN, finished.workspace_id, finished.id, run.id)


async def failed_files(connection: Connection, run: Run) -> list[str]:
    """Returns the files that failed in a run, in order of their paths."""
    rows = await connection.fetch(_FAILED_FILES, run.workspace_id, run.id, MOST_RETRIED_FILES + 1)
    return [row["path"] for row in rows]


async def forget_covered(connection: Connection, workspace_id: int, run_id: UUID) -> None:
    """Empties a scope of what an earlier owner found; what the caller gave stays."""
    await connection.execute(
        "DELETE FROM run_nodes WHERE workspace_id = $1 AND run_id = $2 AND NOT given",
        workspace_id,
        run_id,
    )


async def retry_given(connection: Connection, workspace_id: int, run_id: UUID) -> None:
    """Tries the failed ones of the nodes again that a caller gave."""
    which = (
        "n.id IN (SELECT node_id FROM run_nodes WHERE workspace_id = $1 AND run_id = $2 AND given)"
    )
    await connection.execute(_TRY_AGAIN.format(which=which), workspace_id, run_id)


async def cover_paths(connection: Connection, run: Run, paths: Sequence[str]) -> RunCounters:
    """Puts the nodes of files into a run's scope and tries failed ones again; returns counts."""
    return await _cover(connection, run, _BY_PATH, paths)


async def cover_files(connection: Connection, run: Run, files: Sequence[FileId]) -> RunCounters:
    """Puts the nodes of parsed files into a run's scope, as `cover_paths`."""
    return await _cover(connection, run, _BY_FILE, files)


async def _cover(
    connection: Connection, run: Run, which: str, values: Sequence[object]
) -> RunCounters:
    await connection.execute(
        _TRY_AGAIN.format(which=which).replace("$3", "$2"), run.workspace_id, list(values)
    )
    rows = await connection.fetch(
        _COVER.format(which=which), run.workspace_id, run.id, list(values)
    )
    by_status = Counter({NodeStatus(row["status"]): row["count"] for row in rows})
    return RunCounters(
        nodes_total=by_status.total(),
        nodes_reused=by_status[NodeStatus.EMBEDDED],
        nodes_pending=by_status[NodeStatus.PENDING] + by_status[NodeStatus.PROCESSING],
    )
