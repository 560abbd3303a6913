"""What must hold of the tables after anything: I1 to I6 of the fault plan, as counts of breaches.

Two kinds: rules over what the tables hold now, and an audit that triggers keep of steps that must
never be made, also where no later state shows them. The rules need no audit; a test that wants it
calls `install_audit` on its database first.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_ATTEMPTS = 5 + 3
"""Attempts of a node: as many as the settings allow, and three of workers that died."""

MOST_TAKEN = 10
"""Times that a run is taken up, by default."""

IDLE_SECONDS = 3.0
"""Time after which a transaction that does nothing counts as left behind."""

_PASSING_SECONDS = 5.0
"""Longest time that a transaction of a service's upkeep takes in a test."""

_STATES = {
    "I1: a node without its file": """
        SELECT count(*) FROM nodes n LEFT JOIN files f
          ON f.workspace_id = n.workspace_id AND f.id = n.file_id WHERE f.id IS NULL""",
    "I1: a node of an old generation": """
        SELECT count(*) FROM nodes n
        JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
        WHERE n.generation <> f.generation""",
    "I1: two nodes in one place of a file": """
        SELECT count(*) FROM (SELECT FROM nodes GROUP BY workspace_id, file_id, ordinal
          HAVING count(*) > 1) twice""",
    "I1: a node whose parent is not of its file": """
        SELECT count(*) FROM nodes n LEFT JOIN nodes p
          ON p.workspace_id = n.workspace_id AND p.id = n.parent_id
        WHERE n.parent_id IS NOT NULL AND p.file_id IS DISTINCT FROM n.file_id""",
    "X3: terms of a node that is not embedded, or none of one that is": """
        SELECT count(*) FROM nodes n
        FULL JOIN node_terms t ON t.workspace_id = n.workspace_id AND t.node_id = n.id
        WHERE n.id IS NULL OR (n.status = 'embedded') <> (t.node_id IS NOT NULL)""",
    "X3: terms that are not the ones of the text": """
        SELECT count(*) FROM nodes n
        JOIN node_terms t ON t.workspace_id = n.workspace_id AND t.node_id = n.id
        LEFT JOIN content_terms c ON c.content_hash = n.content_hash
        WHERE (c.terms, c.counts) IS DISTINCT FROM (t.terms, t.counts)""",
    "X3: a node that blocks of postings have or lack, and nobody noted that it went or came": """
        SELECT count(*) FROM (
            SELECT b.workspace_id, b.id AS block,
              ('x' || encode(substr(b.node_ids, 8 * i + 1, 8), 'hex'))::bit(64)::bigint AS node
            FROM term_blocks b, generate_series(0, b.nodes - 1) i) h
        FULL JOIN (SELECT workspace_id, node_id AS node FROM node_terms
            WHERE workspace_id IN (SELECT workspace_id FROM term_blocks)) t
          ON t.workspace_id = h.workspace_id AND t.node = h.node
        WHERE (h.block IS NULL OR t.node IS NULL)
          AND NOT EXISTS (SELECT FROM term_changes c
            WHERE c.workspace_id = coalesce(h.workspace_id, t.workspace_id)
              AND coalesce(h.node, t.node) = ANY (c.nodes))""",
    "X3: postings of a block that is gone, or a note of a workspace that is": """
        SELECT (SELECT count(*) FROM term_postings p LEFT JOIN term_blocks b
            ON b.workspace_id = p.workspace_id AND b.id = p.block_id WHERE b.id IS NULL)
          + (SELECT count(*) FROM term_changes c LEFT JOIN workspaces w
            ON w.id = c.workspace_id WHERE w.id IS NULL)""",
    "I1: a reference of another file than its node's": """
        SELECT count(*) FROM node_references r
        JOIN nodes n ON n.workspace_id = r.workspace_id AND n.id = r.node_id
        WHERE n.file_id <> r.file_id""",
    "I4: a failed node without a reason": """
        SELECT count(*) FROM nodes WHERE status = 'failed' AND error_reason IS NULL""",
    "I4: a node that was tried too often": f"""
        SELECT count(*) FROM nodes WHERE attempt > {MOST_ATTEMPTS} OR crash_count > 3""",
    "I4: a run that was taken too often": f"""
        SELECT count(*) FROM runs WHERE attempt > {MOST_TAKEN} OR attempt < 0""",
    "I4: two outcomes of one node in one run": """
        SELECT count(*) FROM (SELECT FROM run_outcomes WHERE entity = 'node'
          GROUP BY workspace_id, run_id, node_id HAVING count(*) > 1) twice""",
    "I4: a run whose counters are not a count of the nodes": """
        SELECT count(*) FROM runs r JOIN workspaces w ON w.last_run_id = r.id,
        LATERAL (SELECT count(*) AS total, count(*) FILTER (WHERE status = 'embedded') AS embedded,
            count(*) FILTER (WHERE status = 'failed') AS failed
          FROM nodes n WHERE n.workspace_id = r.workspace_id
            AND (r.mode NOT IN ('scoped', 'repair') OR n.id IN (
              SELECT node_id FROM run_nodes s
              WHERE s.workspace_id = r.workspace_id AND s.run_id = r.id))) held
        WHERE NOT EXISTS (SELECT 1 FROM runs u
            WHERE u.workspace_id = r.workspace_id AND u.finished_at IS NULL)
          AND (r.nodes_total, r.nodes_embedded + r.nodes_reused, r.nodes_failed, r.nodes_pending)
          <> (held.total, held.embedded, held.failed, held.total - held.embedded - held.failed)""",
    "I4: a run whose counters are not a count of its outcomes": """
        SELECT count(*) FROM runs r JOIN workspaces w ON w.last_run_id = r.id,
        LATERAL (SELECT count(*) FILTER (WHERE entity = 'node') AS nodes,
            count(*) FILTER (WHERE entity = 'file') AS files
          FROM run_outcomes o WHERE o.workspace_id = r.workspace_id AND o.run_id = r.id
            AND (o.result IN ('failed', 'timeout') OR o.entity = 'node')) listed
        WHERE (r.nodes_failed, r.files_failed) <> (listed.nodes, listed.files)""",
    "I4: a run whose counters are not the sum of its files' outcomes": """
        SELECT count(*) FROM runs r JOIN workspaces w ON w.last_run_id = r.id,
        LATERAL (SELECT count(*) FILTER (WHERE stage = 'parse') AS parsed,
            coalesce(sum(nodes_embedded), 0) AS embedded,
            coalesce(sum(o.nodes_failed), 0) AS failed,
            coalesce(sum(o.nodes_pending), 0) AS pending
          FROM run_outcomes o WHERE o.workspace_id = r.workspace_id AND o.run_id = r.id
            AND o.entity = 'file') listed
        WHERE (r.files_parsed, r.nodes_embedded, r.nodes_failed, r.nodes_pending)
          <> (listed.parsed, listed.embedded, listed.failed, listed.pending)""",
    "I1 of a model: a row that waits without its node, of no such model, or of the active one": """
        SELECT count(*) FROM model_nodes q
        LEFT JOIN nodes n ON n.workspace_id = q.workspace_id AND n.id = q.node_id
        LEFT JOIN workspace_models m
          ON m.workspace_id = q.workspace_id AND m.model_id = q.model_id
        LEFT JOIN workspaces w ON w.id = q.workspace_id AND w.active_model_id = q.model_id
        WHERE n.id IS NULL OR m.model_id IS NULL OR w.id IS NOT NULL""",
    "a run of a model that is the active one, or none of the workspace's": """
        SELECT count(*) FROM runs r JOIN workspaces w ON w.id = r.workspace_id
        LEFT JOIN workspace_models m
          ON m.workspace_id = r.workspace_id AND m.model_id = r.model_id
        WHERE r.finished_at IS NULL AND r.model_id IS NOT NULL
          AND (m.model_id IS NULL OR r.model_id = w.active_model_id)""",
    "an active model that is none of the workspace's": """
        SELECT count(*) FROM workspaces w WHERE active_model_id IS NOT NULL AND NOT EXISTS (
          SELECT 1 FROM workspace_models m
          WHERE m.workspace_id = w.id AND m.model_id = w.active_model_id)""",
    "a node in work for a model though no run is": """
        SELECT count(*) FROM model_nodes q WHERE status = 'processing' AND NOT EXISTS (
          SELECT 1 FROM runs r WHERE r.workspace_id = q.workspace_id
            AND r.model_id = q.model_id AND r.finished_at IS NULL)""",
    "I5: a fence that was never drawn, or one of two nodes": """
        SELECT (SELECT count(*) FROM nodes, fences WHERE fence > last_value)
          + (SELECT count(*) FROM runs, fences WHERE fence > last_value)
          + (SELECT count(*) FROM (SELECT FROM nodes WHERE fence > 0 GROUP BY fence
              HAVING count(*) > 1) twice)""",
    "I5: terms that the last fence did not write": """
        SELECT count(*) FROM nodes n
        JOIN node_terms t ON t.workspace_id = n.workspace_id AND t.node_id = n.id
        WHERE t.fence <> n.fence""",
    "a node in work though no run is": """
        SELECT count(*) FROM nodes n WHERE status = 'processing' AND NOT EXISTS (
          SELECT 1 FROM runs r WHERE r.workspace_id = n.workspace_id AND r.finished_at IS NULL)""",
    "I6: a partition of a workspace that is gone, or one that hangs on no table": """
        SELECT count(*) FROM pg_class c,
          LATERAL substring(c.relname FROM
            '^(?:node_terms|node_references|node_vectors_m\\d+)_w(\\d+)$') number
        WHERE c.relkind = 'r' AND number IS NOT NULL
          AND (NOT EXISTS (SELECT 1 FROM workspaces w WHERE w.id = number::int)
            OR NOT EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhrelid = c.oid))""",
    "I6: a prepared transaction": """
        SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()""",
}
_VECTORS = """
SELECT count(*) FROM (SELECT n.*, w.switch_fence FROM nodes n
    JOIN workspaces w ON w.id = n.workspace_id WHERE w.active_model_id = {model}) n
  FULL JOIN (SELECT v.* FROM node_vectors_m{model} v JOIN workspaces w ON w.id = v.workspace_id
    WHERE w.active_model_id = {model}) v
  ON v.workspace_id = n.workspace_id AND v.node_id = n.id
WHERE n.id IS NULL OR (n.status = 'embedded') <> (v.node_id IS NOT NULL)
  OR v.content_hash <> n.content_hash
  OR v.fence <> n.fence AND greatest(v.fence, n.fence) > n.switch_fence
"""
"""Of a model that was beside another until a switch, a vector has the fence of its own claim."""

_VECTORS_BESIDE = """
SELECT count(*) FROM (SELECT n.*, q.node_id AS waits FROM nodes n
    JOIN workspace_models m ON m.workspace_id = n.workspace_id AND m.model_id = {model}
    JOIN workspaces w ON w.id = n.workspace_id AND w.active_model_id <> {model}
    LEFT JOIN model_nodes q ON q.workspace_id = n.workspace_id AND q.model_id = {model}
      AND q.node_id = n.id) n
  FULL JOIN (SELECT v.* FROM node_vectors_m{model} v
    LEFT JOIN workspaces w ON w.id = v.workspace_id
    WHERE w.active_model_id IS DISTINCT FROM {model}) v
  ON v.workspace_id = n.workspace_id AND v.node_id = n.id
WHERE n.id IS NULL OR (n.waits IS NULL) <> (v.node_id IS NOT NULL)
  OR v.content_hash <> n.content_hash
"""
_WRONG_VECTORS = """
SELECT count(*) FROM node_vectors_m{model} v
LEFT JOIN embedding_cache c ON c.model_id = {model} AND c.content_hash = v.content_hash
WHERE c.embedding IS DISTINCT FROM v.embedding::halfvec
"""
_LEFT_BEHIND = {
    "I6: a connection left in a transaction": """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state LIKE 'idle in transaction%'
          AND state_change < clock_timestamp() - make_interval(secs => $1)""",
    "I6: a lock that nobody gave back": """
        SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
        WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
          AND a.backend_type = 'client backend' -- autovacuum holds locks of its own
          AND (l.mode LIKE '%Exclusive%' OR l.locktype = 'advisory')
          AND l.locktype IN ('tuple', 'transactionid', 'advisory')
          AND a.state_change < clock_timestamp() - make_interval(secs => $1)""",
}

_AUDIT = """
CREATE TABLE audit (what text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION audit_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit (what) VALUES (TG_ARGV[0]);
  RETURN NULL;
END $$;
CREATE TRIGGER audit_node_fence AFTER UPDATE ON nodes FOR EACH ROW
  WHEN (NEW.fence < OLD.fence) EXECUTE FUNCTION audit_step('I5: a node got an older fence');
CREATE TRIGGER audit_node_claim AFTER UPDATE ON nodes FOR EACH ROW
  WHEN (OLD.status = 'pending' AND NEW.status = 'processing' AND NEW.fence <= OLD.fence)
  EXECUTE FUNCTION audit_step('I5: a claim without a new fence');
CREATE TRIGGER audit_run_fence AFTER UPDATE ON runs FOR EACH ROW
  WHEN (NEW.fence < OLD.fence) EXECUTE FUNCTION audit_step('I5: a run got an older fence');
CREATE TRIGGER audit_run_owner AFTER UPDATE ON runs FOR EACH ROW
  WHEN (NEW.owner IS NOT NULL AND NEW.owner IS DISTINCT FROM OLD.owner AND NEW.fence <= OLD.fence)
  EXECUTE FUNCTION audit_step('I5: a run got an owner without a new fence');
CREATE TRIGGER audit_run_steal AFTER UPDATE ON runs FOR EACH ROW
  WHEN (OLD.owner IS NOT NULL AND NEW.owner IS NOT NULL AND NEW.owner <> OLD.owner
    AND OLD.lease_until >= now())
  EXECUTE FUNCTION audit_step('I5: a run was taken while its lease held');
CREATE TRIGGER audit_run_ended AFTER UPDATE ON runs FOR EACH ROW
  WHEN (OLD.finished_at IS NOT NULL)
  EXECUTE FUNCTION audit_step('a run was written after its end');
CREATE TRIGGER audit_cancelled AFTER UPDATE ON runs FOR EACH ROW
  WHEN (NEW.finished_at IS NOT NULL
    AND (NEW.state = 'cancelled') <> (NEW.cancel_requested_at IS NOT NULL))
  EXECUTE FUNCTION audit_step('a run is cancelled and was not asked to, or the other way');
CREATE TABLE audit_takeovers (run_id uuid NOT NULL, lease_until timestamptz NOT NULL,
  taken_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION audit_takeover() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit_takeovers (run_id, lease_until) VALUES (NEW.id, OLD.lease_until);
  RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER audit_run_taken AFTER UPDATE ON runs DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW
  WHEN (OLD.owner IS NOT NULL AND NEW.owner IS NOT NULL AND NEW.fence > OLD.fence)
  EXECUTE FUNCTION audit_takeover()
"""
"""A take-over is noted as it is committed, which is when others see it."""


async def install_audit(url: str) -> None:
    """Has the database write down every step that must never be made."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_AUDIT)
    finally:
        await connection.close()


async def broken_rules(url: str, *, idle_seconds: float = 0.0) -> list[str]:
    """Returns the rules that the tables break, with how often.

    A transaction and a lock count as left behind when no moment of some seconds is without one:
    upkeep of a service that still runs has some in passing.

    Args:
        url: the database.
        idle_seconds: time that a transaction of a service that is at work may stand open; 0 is for
            a database on which no run goes on.
    """
    connection = await asyncpg.connect(url)
    try:
        found = {what: await connection.fetchval(sql) for what, sql in _STATES.items()}
        for row in await connection.fetch("SELECT id FROM models"):
            found["I2: a vector too many, too few, or of another text"] = await connection.fetchval(
                _VECTORS.format(model=row["id"])
            )
            found[
                "I2 of a model: no vector of a node that waits for none, or one of another text"
            ] = await connection.fetchval(_VECTORS_BESIDE.format(model=row["id"]))
            found["I2: a vector that is not the one of its text"] = await connection.fetchval(
                _WRONG_VECTORS.format(model=row["id"])
            )
        for what, sql in _LEFT_BEHIND.items():
            found[what] = await _fewest(connection, sql, idle_seconds)
        found |= await _audited(connection)
    finally:
        await connection.close()
    return [f"{what}: {count}" for what, count in found.items() if count]


async def _fewest(connection: asyncpg.Connection, sql: str, idle_seconds: float) -> int:
    """Returns the smallest count of some seconds, and at once when it is none."""
    deadline = time.monotonic() + _PASSING_SECONDS
    fewest: int = await connection.fetchval(sql, idle_seconds)
    while fewest and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        fewest = min(fewest, await connection.fetchval(sql, idle_seconds))
    return fewest


async def _audited(connection: asyncpg.Connection) -> Mapping[str, int]:
    if await connection.fetchval("SELECT to_regclass('audit')") is None:
        return {}
    rows = await connection.fetch("SELECT what, count(*) AS n FROM audit GROUP BY what")
    return {row["what"]: row["n"] for row in rows}
