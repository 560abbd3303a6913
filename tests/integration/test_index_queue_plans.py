"""Statements of the queue read what they are about, however much there is besides."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from services.indexer.model import WorkspaceId
from services.indexer.storage import queue_admin
from services.indexer.storage.queue_admin import ALL_WORKSPACES
from services.indexer.storage.unused_texts import TAKE
from services.indexer.storage.workspaces import PAGE
from tests.integration.plans import fill, plan_of
from tests.integration.replicas import replica, workspace_with_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from services.indexer.storage.database import Database

_MORE = """
INSERT INTO models (name, fingerprint, dimensions, max_tokens) VALUES ('models/b', 'b', 8, 256);
INSERT INTO workspace_models (workspace_id, model_id) VALUES (1, 2);
INSERT INTO model_nodes (workspace_id, model_id, node_id, status, error_reason)
SELECT 1, m, n.id, CASE WHEN m = 2 AND n.id % 2 = 0 THEN 'failed' ELSE 'pending' END, 'x'
FROM nodes n, generate_series(2, 3) m;
UPDATE nodes SET status = 'processing', lease_owner = gen_random_uuid(), lease_until = now()
WHERE id % 500 = 1 AND status = 'pending';
UPDATE nodes SET status = 'failed', error_reason = 'x'
WHERE id IN (SELECT id FROM nodes WHERE status = 'processing' ORDER BY id LIMIT 5);
INSERT INTO workspaces (name, root, directory)
SELECT 'tree-' || i, 'roots/a', '' FROM generate_series(1, 5000) i;
INSERT INTO workspace_watches (workspace_id) SELECT id FROM workspaces;
INSERT INTO unused_texts (model_id, content_hash, since)
SELECT 1, decode(lpad(to_hex(i), 64, '0'), 'hex'), now() - i * interval '1 s'
FROM generate_series(1, 20000) i;
ANALYZE
"""


@pytest.fixture
async def connection(migrated_url: str, database: Database) -> AsyncIterator[asyncpg.Connection]:
    """A workspace of 20,000 nodes and 40,000 that wait or failed for two models, among 5,000."""
    await workspace_with_model(replica(database))
    connection = await asyncpg.connect(migrated_url)
    try:
        await fill(connection)
        await connection.execute(_MORE)
        yield connection
    finally:
        await connection.close()


_LARGE, _SMALL = WorkspaceId(1), WorkspaceId(2)
_GROWING = "nodes|files|runs|model_nodes|workspaces|workspace_watches|unused_texts"


async def test_what_an_admin_asks_of_a_workspace_reads_no_other(
    connection: asyncpg.Connection,
) -> None:
    """Red with a count of what waits that reads what is embedded, and with a retry that joins."""
    statements: dict[str, tuple[str, Sequence[Any]]] = {
        "failed": (queue_admin.FAILED_NODES, (_LARGE, 0, 0, 50)),
        "failed models": (queue_admin.FAILED_MODELS, (_LARGE,)),
        "retry": (queue_admin.RETRY_ACTIVE, (_LARGE, 0, 1000)),
        "retry beside": (queue_admin.RETRY_BESIDE, (_LARGE, 0, 1000, 2)),
        "workspaces": (PAGE, ("tree-7", 50, None)),
        "workspaces of a tenant": (PAGE, ("tree-7", 50, ["tree-8%"])),
        "unused texts": (TAKE, (86_400.0, 100)),
        **{
            f"{name} of a workspace": (queue_admin.within(sql, _SMALL), (_SMALL,))
            for name, sql in _SCOPED.items()
        },
        **{
            f"{name} of all": (queue_admin.within(sql, ALL_WORKSPACES), (0,))
            for name, sql in _SCOPED.items()
            if name not in {"counts", "left"}  # these count what is most of a table here
        },
    }

    plans = {name: await plan_of(connection, *statement) for name, statement in statements.items()}

    left = await plan_of(connection, queue_admin.within(queue_admin.LEFT, _LARGE), (_LARGE,))

    scanned = {n: p for n, p in plans.items() if re.search(rf"Seq Scan on ({_GROWING})\b", p)}
    assert not scanned, "\n\n".join(f"{name}:\n{plan}" for name, plan in scanned.items())
    assert "nodes_pending" in left
    assert "nodes_leased" in left
    assert "nodes_failed" in plans["failed"]
    assert "model_nodes_failed_by_node" in plans["failed"]
    assert "unused_texts_by_time" in plans["unused texts"]


_SCOPED = {
    "counts": queue_admin.COUNTS,
    "workers": queue_admin.WORKERS,
    "unfinished runs": queue_admin.UNFINISHED,
    "left": queue_admin.LEFT,
    "in flight": queue_admin.IN_FLIGHT,
    "claims": queue_admin.WAIT_FOR_CLAIMS,
}


async def test_a_page_of_failed_nodes_reads_a_page(connection: asyncpg.Connection) -> None:
    """The first and the last of 10,000. Red without an index in the order of the list."""
    for after in ((0, 0), (19_900, 2)):
        rows = await connection.fetch(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {queue_admin.FAILED_NODES}", _LARGE, *after, 50
        )
        assert rows_read(json.loads(rows[0][0])[0]["Plan"]) < 1000


def rows_read(plan: dict[str, Any]) -> int:
    """Returns how many rows the scans of a plan gave and threw away."""
    own = 0
    if "Scan" in plan["Node Type"] and "Relation Name" in plan:
        removed = plan.get("Rows Removed by Filter", 0) + plan["Actual Rows"]
        own = removed * plan["Actual Loops"]
    return own + sum(rows_read(part) for part in plan.get("Plans", ()))
