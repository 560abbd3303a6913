"""Tables with a partition for each workspace: vectors, one table a model, terms and references."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.indexer.storage.database import Connection

PARTITIONED = ("node_terms", "node_references")
"""Those that a workspace has a partition of from its beginning."""


def vectors_table(model_id: int) -> str:
    """Returns the name of a model's table of vectors."""
    return f"node_vectors_m{int(model_id)}"


async def add_partition(connection: Connection, table: str, workspace_id: int) -> None:
    """Adds a workspace's partition to a table, unless it is there.

    Made beside the table and attached, so that readers of the table are not locked out.
    """
    partition = f"{table}_w{int(workspace_id)}"
    if await connection.fetchval("SELECT to_regclass($1)", partition) is not None:
        return
    await connection.execute(f"CREATE TABLE {partition} (LIKE {table} INCLUDING ALL)")
    await connection.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES IN ({int(workspace_id)})"
    )


def vectors_ddl(model_id: int, dimensions: int) -> str:
    """Returns the statement that makes a model's table of vectors, without partitions."""
    return f"""
    CREATE TABLE IF NOT EXISTS {vectors_table(model_id)} (
      workspace_id int NOT NULL,
      node_id bigint NOT NULL,
      fence bigint NOT NULL,
      content_hash bytea NOT NULL,
      embedding halfvec({int(dimensions)}) NOT NULL,
      PRIMARY KEY (workspace_id, node_id),
      FOREIGN KEY (workspace_id, node_id) REFERENCES nodes (workspace_id, id) ON DELETE CASCADE
    ) PARTITION BY LIST (workspace_id)
    """
