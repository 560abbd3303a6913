"""The queue of nodes: claims under lease and fence, and the commit of what became of them."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.indexer.model import ClaimedNode, Failure, ModelId, NodeId
from services.indexer.run import Run, RunCounters
from services.indexer.search.terms import name_terms
from services.indexer.storage.cache import adopt_cached, fill_cache
from services.indexer.storage.claims import committed, failure_columns, lasting_failures
from services.indexer.storage.partitions import vectors_table
from services.indexer.storage.run_rows import HELD, key_of
from services.indexer.storage.run_scope import unfinished_nodes
from services.indexer.storage.term_changes import noted
from services.indexer.transitions import RunState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    import asyncpg

    from services.indexer.ledger import RunLedger
    from services.indexer.model import EmbeddedContent
    from services.indexer.storage.database import Database

HELD_AND_OPEN = f"""
held AS MATERIALIZED (
  SELECT 1 FROM runs WHERE {HELD} AND state = 'running' FOR SHARE),
open AS MATERIALIZED (
  SELECT 1 FROM held WHERE NOT EXISTS (SELECT 1 FROM queue_holds
    WHERE workspace_id IN (0, $1) AND (expires_at IS NULL OR expires_at > now())))"""
"""Whether nodes may be claimed: by the owner of a run that is not to pause or end, while nobody
holds the queue."""

_LEASE = """
u AS (
  UPDATE nodes n SET status = 'processing', attempt = n.attempt + 1,
    fence = nextval('fences'), lease_owner = $5,
    lease_until = clock_timestamp() + make_interval(secs => $6),
    updated_at = now(), status_since = now()
  FROM c WHERE n.workspace_id = $1 AND n.id = c.id RETURNING n.*)
SELECT u.id, u.fence, u.attempt, u.content_hash, f.path, f.digest,
  u.qualified_name, coalesce(u.segments, ARRAY[u.start_byte, u.end_byte]) AS ranges
FROM u JOIN files f ON f.workspace_id = u.workspace_id AND f.id = u.file_id
ORDER BY u.id
"""

CLAIM = f"""
WITH {HELD_AND_OPEN},
c AS MATERIALIZED (
  SELECT id FROM nodes
  WHERE workspace_id = $1 AND status = 'pending' AND available_at <= now()
    AND EXISTS (SELECT 1 FROM open)
  ORDER BY id LIMIT $4 FOR UPDATE SKIP LOCKED),
{_LEASE}
"""
"""Leases what waits in the workspace, in order of ids."""

CLAIM_SCOPED = f"""
WITH {HELD_AND_OPEN},
c AS MATERIALIZED (
  SELECT n.id FROM run_nodes s
  JOIN nodes n ON n.workspace_id = s.workspace_id AND n.id = s.node_id
  WHERE s.workspace_id = $1 AND s.run_id = $2 AND s.node_id > $7
    AND n.status = 'pending' AND n.available_at <= now() AND EXISTS (SELECT 1 FROM open)
  ORDER BY s.node_id LIMIT $4 FOR UPDATE OF n SKIP LOCKED),
{_LEASE}
"""
"""Leases what waits of a run's own nodes, those after $7, in order of ids."""

OUTLOOK = f"""
SELECT (SELECT state FROM runs WHERE {HELD}) AS state,
  EXISTS (SELECT 1 FROM queue_holds WHERE workspace_id IN (0, $1)
    AND (expires_at IS NULL OR expires_at > now())) AS on_hold,
  (SELECT extract(epoch FROM min(available_at) - now())::float8
    FROM {{nodes}} WHERE n.workspace_id = $1 AND n.status = 'pending') AS seconds
"""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run that claimed nothing may expect."""

    wait_seconds: float | None
    """Time until a node may be claimed; None when none waits."""
    on_hold: bool
    """Whether somebody holds the queue."""
    stopping: bool
    """Whether the run is to pause or to end, or is another owner's by now."""


_MOST_REPEATS = 10
"""Times that a batch is committed whose texts were forgotten meanwhile."""


class _TextForgottenError(Exception):
    """The cache lost a text of a batch before its commit: a repair elsewhere redoes that text."""


class NodeQueue:
    """Claims nodes of a run's workspace, and ends the claims. One statement ends a batch."""

    def __init__(
        self, database: Database, ledger: RunLedger, owner: UUID, lease_seconds: float
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._owner = owner
        self._lease_seconds = lease_seconds

    async def claim(self, run: Run, limit: int, after: int = 0) -> list[ClaimedNode]:
        """Leases up to `limit` nodes that wait; none left and none delayed gives an empty list.

        A run over the workspace starts at the least id with every call, so rows that committed late
        are never passed over; a scoped one takes its own nodes after an id, in passes. Who lost the
        run, or is to stop it, gets nothing: the run's row is locked for the time of the statement.
        """
        arguments = (*key_of(run), limit, self._owner, self._lease_seconds)
        async with self._database.connection() as connection:
            if run.is_scoped:
                rows = await connection.fetch(CLAIM_SCOPED, *arguments, after)
            else:
                rows = await connection.fetch(CLAIM, *arguments)
        return claimed_nodes(rows)

    async def outlook(self, run: Run) -> Outlook:
        """Returns what a claim that found nothing means."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                OUTLOOK.format(nodes=unfinished_nodes(run)), *key_of(run)
            )
        return outlook_of(row)

    async def adopt(self, run: Run, model_id: ModelId, nodes: Sequence[ClaimedNode]) -> set[NodeId]:
        """Ends claims whose text the cache holds; returns the nodes that are still claimed."""
        async with self._database.transaction() as connection:
            names = {node.id: name_terms(node.path, node.qualified_name) for node in nodes}
            fences = {node.id: node.fence for node in nodes}
            adopted = await adopt_cached(
                connection, run.workspace_id, model_id, names, fences=fences
            )
            if not adopted:
                return {node.id for node in nodes}
            counters = RunCounters(nodes_pending=-adopted, nodes_reused=adopted)
            await self._ledger.add(connection, run, counters)
            rows = await connection.fetch(
                """
                SELECT n.id FROM unnest($2::bigint[], $3::bigint[]) v (id, fence),
                LATERAL (SELECT id FROM nodes
                  WHERE workspace_id = $1 AND id = v.id AND fence = v.fence
                    AND status = 'processing' OFFSET 0) n
                """,
                run.workspace_id,
                [node.id for node in nodes],
                [node.fence for node in nodes],
            )
        return {NodeId(row["id"]) for row in rows}

    async def complete(
        self,
        run: Run,
        model_id: ModelId,
        contents: Mapping[bytes, EmbeddedContent],
        nodes: Sequence[ClaimedNode],
        stage_seconds: Mapping[str, float],
    ) -> RunCounters:
        """Commits vectors, terms, cache, status and counters of a batch together.

        Nodes whose fence is old are left alone. Returns what was counted: the first node of each
        text as embedded, its twins as reused.
        """
        for _ in range(_MOST_REPEATS):
            with contextlib.suppress(_TextForgottenError):
                return await self._complete(run, model_id, contents, nodes, stage_seconds)
        raise RuntimeError("The cache lost the texts of a batch again and again.")

    async def _complete(
        self,
        run: Run,
        model_id: ModelId,
        contents: Mapping[bytes, EmbeddedContent],
        nodes: Sequence[ClaimedNode],
        stage_seconds: Mapping[str, float],
    ) -> RunCounters:
        started = time.perf_counter()
        async with self._database.transaction() as connection:
            await fill_cache(connection, model_id, contents)
            firsts = list({node.content_hash: node.id for node in reversed(nodes)}.values())
            rows = await connection.fetch(
                _complete_sql(model_id),
                run.workspace_id,
                run.id,
                [node.id for node in nodes],
                [node.fence for node in nodes],
                [" ".join(name_terms(node.path, node.qualified_name)) for node in nodes],
                firsts,
                model_id,
            )
            if rows and not rows[0]["vectors"] == rows[0]["terms"] == len(rows):
                raise _TextForgottenError
            embedded = sum(1 for row in rows if row["forwarded"])
            counters = committed(contents, ended=len(rows), embedded=embedded)
            seconds = {**stage_seconds, "commit": time.perf_counter() - started}
            await self._ledger.add(connection, run, counters, stage_seconds=seconds)
        return counters

    async def fail(
        self,
        run: Run,
        failures: Mapping[NodeId, Failure],
        nodes: Sequence[ClaimedNode],
        stage: str,
        max_attempts: int,
        *,
        seconds: float = 0.0,
    ) -> int:
        """Ends claims of nodes that failed: back to the queue with a delay, or failed for good.

        `seconds` is each node's share of the time of its batch, up to the stage at which it failed.
        Returns how many failed for good.
        """
        failed = [node for node in nodes if node.id in failures]
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                """
                UPDATE nodes n SET status = v.status, error_reason = v.reason,
                  error_message = v.message, error_stage = $8, lease_owner = NULL,
                  lease_until = NULL,
                  available_at = now() + make_interval(secs => v.delay), updated_at = now(),
                  status_since = now()
                FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[],
                  $7::float8[]) v (id, fence, status, reason, message, delay)
                WHERE n.workspace_id = $1 AND n.id = v.id AND n.fence = v.fence
                  AND n.status = 'processing'
                RETURNING n.id, n.status
                """,
                run.workspace_id,
                *failure_columns(failed, failures, max_attempts),
                stage,
            )
            counters, outcomes = lasting_failures(rows, failed, failures, stage, seconds)
            await self._ledger.add(connection, run, counters, outcomes=outcomes)
        return counters.nodes_failed

    async def release(self, run: Run, nodes: Sequence[ClaimedNode]) -> None:
        """Gives claims back as if they had never been made; no attempt is burnt."""
        async with self._database.connection() as connection:
            await connection.execute(
                """
                UPDATE nodes n SET status = 'pending', attempt = greatest(n.attempt - 1, 0),
                  lease_owner = NULL, lease_until = NULL, updated_at = now(),
                  status_since = now()
                FROM unnest($2::bigint[], $3::bigint[]) v (id, fence)
                WHERE n.workspace_id = $1 AND n.id = v.id AND n.fence = v.fence
                  AND n.status = 'processing'
                """,
                run.workspace_id,
                [node.id for node in nodes],
                [node.fence for node in nodes],
            )


def _complete_sql(model_id: ModelId) -> str:
    """Returns the statement that ends a batch.

    Each node is looked up by its key: joined freely, the planner, which takes few nodes to be in
    work, read all of them and for each the whole batch again (measured: 40% of the time).
    """
    table = vectors_table(model_id)
    return f"""
    WITH v AS MATERIALIZED (
      SELECT n.id, x.names
      FROM (SELECT * FROM unnest($3::bigint[], $4::bigint[], $5::text[]) x (id, fence, names)
        ORDER BY id) x,
      LATERAL (SELECT id FROM nodes
        WHERE workspace_id = $1 AND id = x.id AND fence = x.fence AND status = 'processing'
        FOR UPDATE) n),
    u AS (
      UPDATE nodes n SET status = 'embedded', lease_owner = NULL, lease_until = NULL,
        error_reason = NULL, error_message = NULL, crash_count = 0, updated_at = now(),
        status_since = now(),
        embedded_run = CASE WHEN n.id = ANY ($6::bigint[]) THEN $2::uuid END
      FROM v WHERE n.workspace_id = $1 AND n.id = v.id
      RETURNING n.id, n.fence, n.content_hash, v.names,
        n.embedded_run IS NOT NULL AS forwarded),
    e AS (
      INSERT INTO {table}
        (workspace_id, node_id, fence, content_hash, embedding)
      SELECT $1, u.id, u.fence, u.content_hash, c.embedding
      FROM u JOIN embedding_cache c ON c.model_id = $7 AND c.content_hash = u.content_hash
      ON CONFLICT (workspace_id, node_id) DO UPDATE SET fence = excluded.fence,
        content_hash = excluded.content_hash, embedding = excluded.embedding
      WHERE {table}.fence < excluded.fence RETURNING 1),
    t AS (
      INSERT INTO node_terms (workspace_id, node_id, fence, terms, counts, length, name_terms)
      SELECT $1, u.id, u.fence, t.terms, t.counts, t.length, string_to_array(u.names, ' ')
      FROM u JOIN content_terms t ON t.content_hash = u.content_hash
      ON CONFLICT (workspace_id, node_id) DO UPDATE SET fence = excluded.fence,
        terms = excluded.terms, counts = excluded.counts, length = excluded.length,
        name_terms = excluded.name_terms WHERE node_terms.fence < excluded.fence RETURNING 1),
    {noted("u")}
    SELECT id, forwarded, (SELECT count(*) FROM e) AS vectors, (SELECT count(*) FROM t) AS terms
    FROM u
    """


def claimed_nodes(rows: Sequence[asyncpg.Record]) -> list[ClaimedNode]:
    """Returns what a claim leased."""
    return [
        ClaimedNode(
            id=NodeId(row["id"]),
            fence=row["fence"],
            attempt=row["attempt"],
            content_hash=row["content_hash"],
            path=row["path"],
            digest=row["digest"],
            qualified_name=row["qualified_name"],
            ranges=tuple(row["ranges"]),
        )
        for row in rows
    ]


def outlook_of(row: asyncpg.Record | None) -> Outlook:
    """Returns what a row of `OUTLOOK` says."""
    assert row is not None
    seconds = row["seconds"]
    return Outlook(
        wait_seconds=None if seconds is None else max(0.0, float(seconds)),
        on_hold=row["on_hold"],
        stopping=row["state"] != RunState.RUNNING,
    )
