"""The graph's statements walk indexes, whatever a workspace holds."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import asyncpg

from services.indexer.graph.engine import GraphEngine
from services.indexer.graph.model import MAX_NODES, Direction, Resolution, WalkSpec
from services.indexer.model import ParsedReference, ReferenceKind
from services.indexer.storage import graph, tenancy, truth
from services.indexer.storage.graph import GraphStore
from tests.integration.plans import plan_of
from tests.integration.replicas import parsed_file, replica, workspace_with_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.storage.database import Database
    from tests.integration.replicas import Replica

_FILES = 5000
_FILL = f"""
INSERT INTO files (workspace_id, path, state, digest, recipe, language, line_count, size,
  mtime_ns, ctime_ns, inode, settled)
SELECT 1, 'd' || i % 100 || '/f' || i || '.py', 'indexed', decode(repeat('00', 32), 'hex'), 'r',
  'python', 1, 1, 1, 1, 1, true FROM generate_series(1, {_FILES}) i;
INSERT INTO nodes (workspace_id, id, file_id, generation, ordinal, parent_id, kind, qualified_name,
  start_byte, end_byte, start_line, end_line, part, part_count, token_estimate, content_hash,
  status)
SELECT 1, f.id * 10 + o, f.id, 1, o, CASE WHEN o > 0 THEN f.id * 10 END,
  CASE WHEN o = 0 THEN 'class' ELSE 'method' END,
  CASE WHEN o = 0 THEN 'C' || f.id ELSE 'C' || f.id || '.m' || f.id % 1000 + o END,
  0, 1, 1, 1, 0, 1, 1, decode(lpad(to_hex(f.id * 10 + o), 64, '0'), 'hex'), 'embedded'
FROM files f, generate_series(0, 5) o;
INSERT INTO node_references (workspace_id, node_id, ordinal, file_id, kind, name, qualifier, alias,
  line)
SELECT 1, n.id, o, n.file_id, (ARRAY['call', 'call', 'call', 'import', 'inherit'])[o % 5 + 1],
  'm' || (n.id + o) % 1000, 'd1/f' || n.id % 5000, '', 1
FROM nodes n, generate_series(0, 4) o;
ANALYZE
"""

_ALL_ROWS = re.compile(
    r"Seq Scan on (nodes|files|node_references\w*)\b|Index Cond: \(workspace_id = [^()]+\)$",
    re.MULTILINE,
)
"""A scan of a table, or of an index by the workspace alone."""


async def test_no_statement_reads_all_of_a_table(migrated_url: str, database: Database) -> None:
    """On 30,000 nodes and 150,000 references with fresh statistics.

    Planted once: with an index over an expression, a tenant's names read all nodes.
    """
    await workspace_with_model(replica(database))
    connection = await asyncpg.connect(migrated_url)
    await connection.execute(_FILL)
    ids, names, files = [10, 25, 33], ["m5", "m77"], [1, 2]
    calls = ["call"]
    statements: dict[str, tuple[str, Sequence[Any]]] = {
        "nodes": (graph.NODES, (ids,)),
        "first parts": (graph.FIRST_PARTS, (ids,)),
        "symbols": (graph.SYMBOLS, (["C5", "C7.m8"], 20)),
        "uses": (graph.USES, (ids, calls, 5001)),
        "users": (graph.USERS, (names, calls, 5001)),
        "aliases": (graph.ALIASES, (names, 500)),
        "importers": (graph.IMPORTERS, (["f5", "f7"], 5001)),
        "members": (graph.MEMBERS, (ids, 1000)),
        "imports": (graph.IMPORTS_OF, (files, 1000)),
        "in file": (graph.IN_FILE, (files, names)),
        "by name": (graph.BY_NAME, (names, 500)),
        "by stem": (graph.BY_STEM, (["f5", "f7"], 200)),
        "by folder": (graph.BY_FOLDER, (["d5", "d7"], 200)),
        "by path": (graph.BY_PATH, (["d5/f5.py"],)),
        "first": (graph.FIRST, (files,)),
        "shown": (graph.SHOWN, (ids,)),
        "twins": (truth.TWINS, (ids,)),
        "origin": (truth.ORIGIN, (ids,)),
    }

    plans = {
        name: await plan_of(connection, sql, (1, *arguments))
        for name, (sql, arguments) in statements.items()
    }
    await tenancy.install(database)
    async with connection.transaction():
        await tenancy.restrict(connection, ["tree"])
        for name, (sql, arguments) in statements.items():
            plans[f"{name} for a tenant"] = await plan_of(connection, sql, (1, *arguments))

    await connection.close()
    scanned = {name: plan for name, plan in plans.items() if _ALL_ROWS.search(plan)}
    assert not scanned, "\n\n".join(f"{name}:\n{plan}" for name, plan in scanned.items())


async def test_a_first_index_of_many_nodes_checks_each_reference_by_its_key(
    database: Database,
) -> None:
    """Planted once: without statistics of a growing table, 6,000 references read 9 million rows."""
    stores = replica(database)
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    for number in range(60):
        file = parsed_file(f"f{number}.py", *(f"{number}_{i}" for i in range(50)))
        calls = [ParsedReference(i, ReferenceKind.CALL, "x", str(j), "", 1)
                 for i in range(50) for j in range(2)]  # fmt: skip
        await stores.apply(run, model, replace(file, references=tuple(calls)))

    await stores.value("SELECT pg_stat_force_next_flush()")
    read = await stores.value(
        "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'nodes'"
    )

    assert await stores.value("SELECT count(*) FROM node_references") == 6000
    assert 0 < read < 1_000_000


async def test_a_workspace_that_is_new_beside_another_costs_its_rows_and_no_products_of_them(
    database: Database,
) -> None:
    """Statistics that know of one workspace alone say that the next has no rows at all.

    Happened: each beat read all nodes of the workspace times all claims, 16 million rows here, and
    the second of two equal trees took three times as long as the first.
    """
    stores = replica(database)
    for name in ("first", "second"):
        workspace, model = await workspace_with_model(stores, name)
        await stores.queue(workspace)
        run = await stores.take()
        for number in range(40):
            texts = (f"{name}{number}_{i}" for i in range(100))
            await stores.apply(run, model, parsed_file(f"f{number}.py", *texts))
            if name == "first" and number == 10:
                async with database.connection() as connection:
                    await connection.execute("ANALYZE")
        if name == "first":
            await stores.ledger.finish(run, None)
    before = await _rows_read(stores)

    claimed = await stores.nodes.claim(run, 400)
    for _ in range(10):
        await stores.ledger.beat(run)
    for start in range(0, 400, 100):
        await stores.complete(run, model, claimed[start : start + 100])

    assert await _rows_read(stores) - before < 200_000


async def _rows_read(stores: Replica) -> int:
    await stores.value("SELECT pg_stat_force_next_flush()")
    read: int = await stores.value(
        "SELECT sum(coalesce(idx_tup_read, 0))::bigint + (SELECT sum(seq_tup_read)::bigint "
        "FROM pg_stat_user_tables WHERE relname = 'nodes') FROM pg_stat_user_indexes "
        "WHERE relname = 'nodes'"
    )
    return read


async def test_a_walk_that_finds_too_much_stops_and_says_so(database: Database) -> None:
    """A function that 5,200 others call: a step looks at 5,000 uses and finds 2,000 nodes."""
    stores = replica(database)
    workspace, model = await workspace_with_model(stores)
    await stores.queue(workspace)
    run = await stores.take()
    files = [parsed_file("x.rb", "x")]
    for number in range(52):
        file = parsed_file(f"f{number}.rb", *(f"{number}_{i}" for i in range(100)))
        calls = [ParsedReference(i, ReferenceKind.CALL, "x", "", "", 1) for i in range(100)]
        files.append(replace(file, references=tuple(calls)))
    await stores.apply(run, model, *(replace(file, language="ruby") for file in files))
    engine = GraphEngine(GraphStore(database))

    found = await engine.around(workspace, WalkSpec(direction=Direction.IN), symbols=["x"])
    few = await engine.around(
        workspace, WalkSpec(direction=Direction.IN, max_nodes=7), symbols=["x"]
    )

    assert found.truncated
    assert len(found.distances) == MAX_NODES
    assert len(few.distances) == 7
    assert list(few.distances) == list(found.distances)[:7]
    ends = {*found.starts, *found.distances}
    assert all({edge.source, edge.target} <= ends for edge in found.edges)
    assert {edge.resolution for edge in found.edges} == {Resolution.NEIGHBOUR}


async def test_workspaces_from_before_the_graph_get_their_partition(
    migrated_url: str, database: Database
) -> None:
    """The migration itself is run again over a database that holds a workspace."""
    stores = replica(database)
    workspace, _ = await workspace_with_model(stores)
    version = import_module("services.indexer.storage.migrations.versions.0007_graph")
    async with database.connection() as connection:
        await connection.execute("DROP TABLE node_references")
        await connection.execute("ALTER TABLE nodes DROP COLUMN name")
        await connection.execute("ALTER TABLE files DROP COLUMN stem, DROP COLUMN folder")
        for statement in version.STATEMENTS:
            await connection.execute(statement)

    partition = f"node_references_w{workspace.id}"

    assert await stores.value("SELECT to_regclass($1)::text", partition) == partition
    await stores.workspaces.delete(workspace.name)
    assert await stores.value("SELECT to_regclass($1)::text", partition) is None
