"""Lets the planner know that tables have grown, before many statements follow an old plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.indexer.model import WorkspaceId
    from services.indexer.storage.database import Connection

_TABLES = ("files", "nodes")
_LEAST_PAGES = 1
_GROWTH = 8
"""Tables are analyzed when they have so many times the pages that they had the last time."""

_LEAST_NODES, _SURPRISE = 1000, 8
"""They are too when a workspace has so many times the nodes that the planner believes it has."""

_GROWN = f"""
SELECT relname FROM pg_class WHERE oid = ANY ($1::text[]::regclass[])
  AND pg_relation_size(oid) > {_GROWTH} * greatest(relpages, {_LEAST_PAGES})
    * current_setting('block_size')::int
"""


_EXPECTED = "EXPLAIN (FORMAT JSON) SELECT FROM nodes WHERE workspace_id = {}"


async def analyze_grown(connection: Connection, workspace_id: WorkspaceId, nodes: int) -> None:
    """Analyzes the tables that others point to when they, or a workspace in them, have grown much.

    The checks of foreign keys keep a plan for as long as a connection lives, or until the table is
    analyzed. One that was made while the table was new may walk an index by the workspace alone:
    each row then costs all rows of its workspace, and autovacuum comes a minute later.

    A workspace that is new beside large ones has no rows for all that the planner knows, and no
    number of its rows is a reason for autovacuum to look again while the others are larger: any
    order of a join is the best one then.

    Args:
        connection: in the transaction that writes.
        workspace_id: the workspace that is written.
        nodes: how many nodes it has at least.
    """
    grown = [row["relname"] for row in await connection.fetch(_GROWN, list(_TABLES))]
    if nodes >= _LEAST_NODES and nodes > _SURPRISE * await _expected(connection, workspace_id):
        grown = list(_TABLES)
    for table in grown:
        await connection.execute(f"ANALYZE {table}")


async def _expected(connection: Connection, workspace_id: WorkspaceId) -> float:
    """Returns how many nodes the planner believes that a workspace has."""
    plan = json.loads(await connection.fetchval(_EXPECTED.format(int(workspace_id))))
    rows: float = plan[0]["Plan"]["Plan Rows"]
    return rows
