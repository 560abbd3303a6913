"""The queue of a model beside the active one: as the queue of nodes, on rows of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from services.indexer.model import ClaimedNode, NodeId
from services.indexer.run import Run, RunCounters
from services.indexer.storage.cache import fill_cache
from services.indexer.storage.claims import committed, failure_columns, fences_of, lasting_failures
from services.indexer.storage.nodes import HELD_AND_OPEN, OUTLOOK, claimed_nodes, outlook_of
from services.indexer.storage.partitions import vectors_table
from services.indexer.storage.run_rows import key_of
from services.indexer.storage.run_scope import unfinished_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from services.indexer.ledger import RunLedger
    from services.indexer.model import EmbeddedContent, Failure, ModelId
    from services.indexer.storage.database import Connection, Database
    from services.indexer.storage.nodes import Outlook

CLAIM_OF_MODEL = f"""
WITH {HELD_AND_OPEN},
c AS MATERIALIZED (
  SELECT node_id FROM model_nodes
  WHERE workspace_id = $1 AND model_id = $7 AND status = 'pending' AND available_at <= now()
    AND EXISTS (SELECT 1 FROM open)
  ORDER BY node_id LIMIT $4 FOR UPDATE SKIP LOCKED),
u AS (
  UPDATE model_nodes q SET status = 'processing', attempt = q.attempt + 1,
    fence = nextval('fences'), lease_owner = $5,
    lease_until = clock_timestamp() + make_interval(secs => $6),
    updated_at = now(), status_since = now()
  FROM c WHERE q.workspace_id = $1 AND q.model_id = $7 AND q.node_id = c.node_id RETURNING q.*)
SELECT n.id, u.fence, u.attempt, n.content_hash, f.path, f.digest,
  n.qualified_name, coalesce(n.segments, ARRAY[n.start_byte, n.end_byte]) AS ranges
FROM u JOIN nodes n ON n.workspace_id = u.workspace_id AND n.id = u.node_id
JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
ORDER BY n.id
"""
"""Leases what waits for a model, in order of ids."""

_STILL_CLAIMED = """
SELECT q.node_id AS id FROM unnest($3::bigint[], $4::bigint[]) v (id, fence),
LATERAL (SELECT node_id FROM model_nodes
  WHERE workspace_id = $1 AND model_id = $2 AND node_id = v.id AND fence = v.fence
    AND status = 'processing' OFFSET 0) q
"""

_HOLD_NODES = """
SELECT FROM nodes WHERE workspace_id = $1 AND id = ANY ($2) ORDER BY id FOR KEY SHARE
"""
"""Nodes before rows of queues, as whoever removes a node: a vector needs its node's row anyway."""

_COMPLETE = """
WITH v AS MATERIALIZED (
  SELECT q.node_id, q.fence, n.content_hash
  FROM (SELECT * FROM unnest($3::bigint[], $4::bigint[]) x (id, fence) ORDER BY id) x,
  LATERAL (SELECT n.content_hash FROM nodes n
    WHERE n.workspace_id = $1 AND n.id = x.id AND EXISTS (SELECT 1 FROM embedding_cache c
      WHERE c.model_id = $2 AND c.content_hash = n.content_hash) OFFSET 0) n,
  LATERAL (SELECT node_id, fence FROM model_nodes
    WHERE workspace_id = $1 AND model_id = $2 AND node_id = x.id AND fence = x.fence
      AND status = 'processing' FOR UPDATE) q),
d AS (
  DELETE FROM model_nodes q USING v
  WHERE q.workspace_id = $1 AND q.model_id = $2 AND q.node_id = v.node_id
  RETURNING v.node_id, v.fence, v.content_hash),
e AS (
  INSERT INTO {table} AS t (workspace_id, node_id, fence, content_hash, embedding)
  SELECT $1, d.node_id, d.fence, d.content_hash, c.embedding
  FROM d JOIN embedding_cache c ON c.model_id = $2 AND c.content_hash = d.content_hash
  ON CONFLICT (workspace_id, node_id) DO UPDATE SET fence = excluded.fence,
    content_hash = excluded.content_hash, embedding = excluded.embedding
  WHERE t.fence < excluded.fence)
SELECT node_id AS id FROM d
"""
"""Ends claims whose text is cached: the row goes, its vector comes with the fence of the claim."""

_FAIL = """
UPDATE model_nodes q SET status = v.status, error_reason = v.reason, error_message = v.message,
  error_stage = $9, lease_owner = NULL, lease_until = NULL, updated_at = now(),
  status_since = now(),
  available_at = now() + make_interval(secs => v.delay)
FROM unnest($3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::float8[])
  v (id, fence, status, reason, message, delay)
WHERE q.workspace_id = $1 AND q.model_id = $2 AND q.node_id = v.id AND q.fence = v.fence
  AND q.status = 'processing'
RETURNING q.node_id AS id, q.status
"""

_RELEASE = """
UPDATE model_nodes q SET status = 'pending', attempt = greatest(q.attempt - 1, 0),
  lease_owner = NULL, lease_until = NULL, updated_at = now(), status_since = now()
FROM unnest($3::bigint[], $4::bigint[]) v (id, fence)
WHERE q.workspace_id = $1 AND q.model_id = $2 AND q.node_id = v.id AND q.fence = v.fence
  AND q.status = 'processing'
"""


class ModelQueue:
    """Claims nodes that wait for a run's model, and ends the claims; as `NodeQueue`.

    Nodes keep their status, and terms are none of it: both are the active model's.
    """

    def __init__(
        self, database: Database, ledger: RunLedger, owner: UUID, lease_seconds: float
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._owner = owner
        self._lease_seconds = lease_seconds

    async def claim(self, run: Run, limit: int, after: int = 0) -> list[ClaimedNode]:
        """Leases up to `limit` nodes that wait, from the least id with every call."""
        del after
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                CLAIM_OF_MODEL,
                *key_of(run),
                limit,
                self._owner,
                self._lease_seconds,
                run.model_id,
            )
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
            adopted = await self._end(connection, run, model_id, nodes)
            if not adopted:
                return {node.id for node in nodes}
            counters = RunCounters(nodes_pending=-len(adopted), nodes_reused=len(adopted))
            await self._ledger.add(connection, run, counters)
            rows = await connection.fetch(
                _STILL_CLAIMED, run.workspace_id, model_id, *fences_of(nodes)
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
        """Commits vectors, cache and counters of a batch together.

        Nodes whose fence is old are left alone. Returns what was counted: the first node of each
        text as embedded, its twins as reused.
        """
        started = time.perf_counter()
        async with self._database.transaction() as connection:
            await fill_cache(connection, model_id, contents)
            ended = await self._end(connection, run, model_id, nodes)
            firsts = {node.content_hash: node.id for node in reversed(nodes)}
            embedded = len(ended.intersection(firsts.values()))
            counters = committed(contents, ended=len(ended), embedded=embedded)
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
                _FAIL,
                run.workspace_id,
                run.model_id,
                *failure_columns(failed, failures, max_attempts),
                stage,
            )
            counters, outcomes = lasting_failures(rows, failed, failures, stage, seconds)
            await self._ledger.add(connection, run, counters, outcomes=outcomes)
        return counters.nodes_failed

    async def release(self, run: Run, nodes: Sequence[ClaimedNode]) -> None:
        """Gives claims back as if they had never been made; no attempt is burnt."""
        async with self._database.connection() as connection:
            await connection.execute(_RELEASE, run.workspace_id, run.model_id, *fences_of(nodes))

    async def _end(
        self, connection: Connection, run: Run, model_id: ModelId, nodes: Sequence[ClaimedNode]
    ) -> set[NodeId]:
        await connection.execute(_HOLD_NODES, run.workspace_id, [node.id for node in nodes])
        rows = await connection.fetch(
            _COMPLETE.format(table=vectors_table(model_id)),
            run.workspace_id,
            model_id,
            *fences_of(nodes),
        )
        return {NodeId(row["id"]) for row in rows}
