"""Files and the nodes that they hold: what a parse changes, in one transaction a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from services.indexer.model import FileId, KnownFile, Signature
from services.indexer.outcomes import parsed_outcome, removed_outcome, unchanged_outcome
from services.indexer.run import RunCounters
from services.indexer.storage.cache import adopt_cached
from services.indexer.storage.model_rows import hold_node_set, queue_for_models
from services.indexer.storage.node_references import write_references
from services.indexer.storage.node_rows import (
    StoredFile,
    insert_new,
    lock_nodes,
    place,
    remove_nodes,
    stored_nodes,
    update_kept,
)
from services.indexer.storage.statistics import analyze_grown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import asyncpg

    from services.indexer.ledger import RunLedger
    from services.indexer.model import ModelId, ParsedFile, WorkspaceId
    from services.indexer.run import Run
    from services.indexer.storage.database import Connection, Database

_COLUMNS = "id, path, size, mtime_ns, ctime_ns, inode, settled, digest, recipe"
PAGE = f"""
SELECT {_COLUMNS} FROM files WHERE workspace_id = $1 AND path > $2 ORDER BY path LIMIT $3
"""
PAGE_OF = f"""
SELECT DISTINCT f.* FROM unnest($4::text[]) AS n (name), LATERAL (
  (SELECT {_COLUMNS} FROM files WHERE workspace_id = $1 AND path > $2 AND path = n.name)
  UNION ALL
  (SELECT {_COLUMNS} FROM files WHERE workspace_id = $1 AND path > $2
    AND path > n.name || '/' AND path < n.name || '0' ORDER BY path LIMIT $3)) f
ORDER BY path LIMIT $3
"""
"""Files of these names, and those beneath folders of these names: in bytes, 0 comes after /."""

_LARGEST_INODE = (1 << 63) - 1
"""PostgreSQL has no unsigned numbers; an inode is compared, never used."""


class FileStore:
    """Reads and writes files with their nodes."""

    def __init__(self, database: Database, ledger: RunLedger) -> None:
        self._database = database
        self._ledger = ledger

    async def page(self, workspace_id: WorkspaceId, after: str, limit: int) -> list[KnownFile]:
        """Returns files in byte order of their paths, those after a path."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(PAGE, workspace_id, after, limit)
        return list(map(_known_file, rows))

    async def page_of(
        self, workspace_id: WorkspaceId, names: Sequence[str], after: str, limit: int
    ) -> list[KnownFile]:
        """Returns files of some names, or beneath folders of these names, as `page`.

        Costs what they are, however many files there are besides.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(PAGE_OF, workspace_id, after, limit, list(names))
        return list(map(_known_file, rows))

    async def paths(self, workspace_id: WorkspaceId, ids: Sequence[int]) -> list[str]:
        """Returns the paths of files by their ids, in byte order."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT path FROM files WHERE workspace_id = $1 AND id = ANY ($2) ORDER BY path",
                workspace_id,
                list(ids),
            )
        return [row["path"] for row in rows]

    async def touch(
        self, run: Run, seen: Mapping[str, Signature], seconds_each: float = 0.0
    ) -> None:
        """Records new signatures of files whose bytes did not change, and the time of each."""
        async with self._database.transaction() as connection:
            await connection.execute(
                """
                UPDATE files f SET size = v.size, mtime_ns = v.mtime_ns, ctime_ns = v.ctime_ns,
                  inode = v.inode, settled = v.settled
                FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                  $7::boolean[]) v (path, size, mtime_ns, ctime_ns, inode, settled)
                WHERE f.workspace_id = $1 AND f.path = v.path
                """,
                run.workspace_id,
                list(seen),
                [item.size for item in seen.values()],
                [item.mtime_ns for item in seen.values()],
                [item.ctime_ns for item in seen.values()],
                [item.inode & _LARGEST_INODE for item in seen.values()],
                [item.settled for item in seen.values()],
            )
            counters = RunCounters(files_parsed=len(seen))
            outcomes = [unchanged_outcome(path, seconds_each) for path in seen]
            await self._ledger.add(connection, run, counters, outcomes=outcomes)

    async def remove(
        self, run: Run, paths: Sequence[str], stage: str = "scan", seconds_each: float = 0.0
    ) -> None:
        """Removes files that are gone; their nodes, vectors and terms go with them."""
        async with self._database.transaction() as connection:
            await hold_node_set(connection, run.workspace_id)
            # Files before nodes, each in one order, as everyone else who locks both.
            rows = await connection.fetch(
                """
                SELECT id FROM files WHERE workspace_id = $1 AND path = ANY ($2)
                ORDER BY path FOR UPDATE
                """,
                run.workspace_id,
                list(paths),
            )
            files = [FileId(row["id"]) for row in rows]
            nodes = await lock_nodes(connection, run.workspace_id, files)
            counters = await remove_nodes(connection, run, [row["id"] for row in nodes])
            await connection.execute(
                "DELETE FROM files WHERE workspace_id = $1 AND id = ANY ($2)",
                run.workspace_id,
                files,
            )
            outcomes = [removed_outcome(path, stage, seconds_each) for path in paths]
            await self._ledger.add(connection, run, counters, outcomes=outcomes)

    async def apply(
        self,
        run: Run,
        model_id: ModelId,
        recipe: str,
        files: Sequence[ParsedFile],
        seconds: float,
        *,
        attempts: int = 1,
    ) -> None:
        """Makes the database hold a batch of parsed files, and nothing of what they held before.

        Nodes whose text is in the cache get their vector and terms here; the others are pending.
        Idempotent: the same batch again changes nothing but generations.
        """
        share = seconds / max(1, len(files))
        outcomes = [parsed_outcome(file, share, attempts) for file in files]
        async with self._database.transaction() as connection:
            await hold_node_set(connection, run.workspace_id)
            rows = await _upsert_files(connection, run.workspace_id, recipe, files)
            stored = await stored_nodes(connection, run.workspace_id, list(rows.values()))
            placed = await place(connection, files, rows, stored)
            removed = [node for item in placed for node in item.plan.removed]
            gone = await remove_nodes(connection, run, removed)
            await update_kept(connection, run.workspace_id, placed)
            new = await insert_new(connection, run.workspace_id, placed)
            await queue_for_models(connection, run.workspace_id, new)
            known = await self._ledger.nodes_total(connection, run)
            await analyze_grown(connection, run.workspace_id, known + len(new))
            await write_references(connection, run.workspace_id, placed)
            adopted = await adopt_cached(connection, run.workspace_id, model_id, new)
            if run.is_scoped:
                come = await self._cover(connection, run, rows.values(), files)
            else:
                come = RunCounters(
                    nodes_total=len(new), nodes_reused=adopted, nodes_pending=len(new) - adopted
                )
            counters = replace(gone + come, files_parsed=len(files))
            await self._ledger.add(
                connection, run, counters, stage_seconds={"parse": seconds}, outcomes=outcomes
            )

    async def _cover(
        self,
        connection: Connection,
        run: Run,
        rows: Iterable[StoredFile],
        files: Sequence[ParsedFile],
    ) -> RunCounters:
        """Puts parsed files into a scoped run's scope; returns what it counts of them."""
        counters = await self._ledger.cover_files(connection, run, [row.id for row in rows])
        skipped = sum(1 for file in files if file.skip_reason)
        return replace(counters, files_skipped=skipped)


def _known_file(row: asyncpg.Record) -> KnownFile:
    return KnownFile(
        FileId(row[0]), row[1], Signature(row[2], row[3], row[4], row[5], row[6]), row[7], row[8]
    )


async def _upsert_files(
    connection: Connection, workspace_id: WorkspaceId, recipe: str, files: Sequence[ParsedFile]
) -> dict[str, StoredFile]:
    # Sorted, so that two transactions lock rows in one order.
    files = sorted(files, key=lambda item: item.path)
    signatures = [item.signature for item in files]
    columns: list[list[Any]] = [
        [item.path for item in files],
        ["skipped" if item.skip_reason else "indexed" for item in files],
        [item.skip_reason for item in files],
        [item.digest for item in files],
        [item.language for item in files],
        [item.line_count for item in files],
        [item.size for item in signatures],
        [item.mtime_ns for item in signatures],
        [item.ctime_ns for item in signatures],
        [item.inode & _LARGEST_INODE for item in signatures],
        [item.settled for item in signatures],
        [item.has_syntax_errors for item in files],
    ]
    rows = await connection.fetch(
        """
        INSERT INTO files AS f (workspace_id, recipe, path, state, skip_reason, digest, language,
          line_count, size, mtime_ns, ctime_ns, inode, settled, has_syntax_errors)
        SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::text[], $6::bytea[], $7::text[],
          $8::int[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::boolean[],
          $14::boolean[])
        ON CONFLICT (workspace_id, path) DO UPDATE SET generation = f.generation + 1,
          recipe = excluded.recipe, state = excluded.state, skip_reason = excluded.skip_reason,
          digest = excluded.digest, language = excluded.language,
          line_count = excluded.line_count, size = excluded.size, mtime_ns = excluded.mtime_ns,
          ctime_ns = excluded.ctime_ns, inode = excluded.inode, settled = excluded.settled,
          has_syntax_errors = excluded.has_syntax_errors
        RETURNING f.id, f.path, f.generation
        """,
        workspace_id,
        recipe,
        *columns,
    )
    return {row["path"]: StoredFile(FileId(row["id"]), row["generation"]) for row in rows}
