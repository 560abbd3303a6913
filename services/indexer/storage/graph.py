"""The code graph's rows: each statement walks an index and has a limit."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from services.indexer.graph.model import (
    MAX_IMPORTS,
    MAX_MEMBERS,
    MAX_SAME_NAME,
    MAX_SAME_PLACE,
    MAX_USES,
    GraphNode,
    Import,
    SourceFile,
    Use,
)
from services.indexer.model import FileId, NodeId, NodeKind, ReferenceKind
from services.indexer.search.model import Hit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    import asyncpg

    from services.indexer.graph.facts import Facts
    from services.indexer.model import WorkspaceId
    from services.indexer.storage.database import Connection, Database

MOST_KEYS = 2000
"""Most keys of one statement; those left over are fetched by the next."""

_NODE = "n.id, n.file_id, f.path, f.language, n.kind, n.qualified_name, n.parent_id, n.ordinal"
_FILE = "JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id"
_DEFINITION = "n.kind IN ('class', 'function', 'method') AND n.part = 0"
_USE = "r.kind AS use_kind, r.name, r.qualifier, r.alias, r.line"

NODES = f"""
SELECT {_NODE}, n.id AS asked FROM nodes n {_FILE} WHERE n.workspace_id = $1 AND n.id = ANY ($2)
"""
FIRST_PARTS = f"""
SELECT {_NODE}, p.id AS asked FROM nodes p, LATERAL (
    SELECT h.* FROM nodes h WHERE h.workspace_id = p.workspace_id AND h.file_id = p.file_id
      AND h.ordinal < p.ordinal AND h.part = 0
    ORDER BY h.ordinal DESC LIMIT 1) n {_FILE}
WHERE p.workspace_id = $1 AND p.id = ANY ($2) AND p.part > 0
  AND n.kind = p.kind AND n.qualified_name = p.qualified_name
"""
SYMBOLS = f"""
SELECT {_NODE}, s.symbol AS asked FROM unnest($2::text[]) s (symbol), LATERAL (
    SELECT n.* FROM nodes n
    WHERE n.workspace_id = $1 AND n.name = split_part(s.symbol, '.', -1) AND {_DEFINITION}
      AND (n.qualified_name = s.symbol OR right(n.qualified_name, length(s.symbol) + 1)
        = '.' || s.symbol)
    ORDER BY n.qualified_name <> s.symbol, n.file_id, n.ordinal LIMIT $3) n {_FILE}
"""
USES = f"""
SELECT {_NODE}, {_USE} FROM node_references r
JOIN nodes n ON n.workspace_id = r.workspace_id AND n.id = r.node_id {_FILE}
WHERE r.workspace_id = $1 AND r.node_id = ANY ($2) AND r.kind = ANY ($3)
ORDER BY r.node_id, r.ordinal LIMIT $4
"""
USERS = f"""
SELECT {_NODE}, {_USE} FROM unnest($2::text[]) s (name), LATERAL (
    SELECT * FROM node_references r
    WHERE r.workspace_id = $1 AND r.name = s.name AND r.kind = ANY ($3)
    ORDER BY r.node_id, r.ordinal LIMIT $4) r
JOIN nodes n ON n.workspace_id = $1 AND n.id = r.node_id {_FILE}
"""
ALIASES = """
SELECT DISTINCT r.name, r.alias FROM node_references r
WHERE r.workspace_id = $1 AND r.name = ANY ($2) AND r.kind = 'import' AND r.alias <> ''
  AND r.alias <> r.name ORDER BY 1, 2 LIMIT $3
"""
IMPORTERS = f"""
SELECT {_NODE}, {_USE} FROM unnest($2::text[]) s (stem), LATERAL (
    SELECT * FROM node_references r
    WHERE r.workspace_id = $1 AND r.module = s.stem AND r.kind = 'import'
    ORDER BY r.node_id, r.ordinal LIMIT $3) r
JOIN nodes n ON n.workspace_id = $1 AND n.id = r.node_id {_FILE}
"""
MEMBERS = f"""
SELECT {_NODE}, p.id AS asked FROM nodes p, LATERAL (
    SELECT n.* FROM nodes n WHERE n.workspace_id = p.workspace_id AND n.file_id = p.file_id
      AND n.parent_id = p.id AND n.part = 0 ORDER BY n.ordinal LIMIT $3) n {_FILE}
WHERE p.workspace_id = $1 AND p.id = ANY ($2)
"""
IMPORTS_OF = """
SELECT s.file_id AS key, r.name, r.qualifier, r.alias FROM unnest($2::bigint[]) s (file_id),
LATERAL (
    SELECT * FROM node_references r
    WHERE r.workspace_id = $1 AND r.file_id = s.file_id AND r.kind = 'import'
    ORDER BY r.node_id, r.ordinal LIMIT $3) r
ORDER BY r.node_id, r.ordinal
"""
IN_FILE = f"""
SELECT {_NODE} FROM unnest($2::bigint[], $3::text[]) s (file_id, name)
JOIN nodes n ON n.workspace_id = $1 AND n.file_id = s.file_id AND n.name = s.name
  AND {_DEFINITION} {_FILE} ORDER BY n.file_id, n.ordinal
"""
BY_NAME = f"""
SELECT {_NODE}, s.name AS key FROM unnest($2::text[]) s (name), LATERAL (
    SELECT n.* FROM nodes n WHERE n.workspace_id = $1 AND n.name = s.name AND {_DEFINITION}
    ORDER BY n.file_id, n.ordinal LIMIT $3) n {_FILE} ORDER BY f.path, n.ordinal
"""
BY_STEM = """
SELECT s.key, f.id, f.path FROM unnest($2::text[]) s (key), LATERAL (
    SELECT * FROM files f WHERE f.workspace_id = $1 AND f.stem = s.key
    ORDER BY f.path LIMIT $3) f ORDER BY f.path
"""
BY_FOLDER = """
SELECT s.key, f.id, f.path FROM unnest($2::text[]) s (key), LATERAL (
    SELECT * FROM files f WHERE f.workspace_id = $1 AND f.folder = s.key
    ORDER BY f.path LIMIT $3) f ORDER BY f.path
"""
BY_PATH = """
SELECT f.path AS key, f.id, f.path FROM files f WHERE f.workspace_id = $1 AND f.path = ANY ($2)
"""
FIRST = f"""
SELECT {_NODE} FROM unnest($2::bigint[]) s (file_id), LATERAL (
    SELECT n.* FROM nodes n WHERE n.workspace_id = $1 AND n.file_id = s.file_id
    ORDER BY n.ordinal LIMIT 1) n {_FILE}
"""
SHOWN = """
SELECT n.id, n.kind, n.qualified_name, n.start_byte, n.end_byte, n.start_line, n.end_line,
  f.path, f.digest, f.language
FROM nodes n JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE n.workspace_id = $1 AND n.id = ANY ($2)
"""


class GraphStore:
    """Opens views of the graph."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def view(self, workspace_id: WorkspaceId) -> AsyncIterator[GraphView]:
        """Yields a view of a workspace: all that it reads is of one state of the database."""
        async with self._database.snapshot() as connection:
            yield GraphView(connection, workspace_id)

    async def shown(
        self, workspace_id: WorkspaceId, workspace_name: str, scores: Mapping[NodeId, float]
    ) -> list[Hit]:
        """Returns nodes in the order of the scores given, embedded or not; none that are gone."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(SHOWN, workspace_id, list(scores))
        found = {row["id"]: row for row in rows}
        return [
            _hit(found[node], workspace_name, score)
            for node, score in scores.items()
            if node in found
        ]


class GraphView:
    """Reads the graph of one workspace within one transaction."""

    def __init__(self, connection: Connection, workspace_id: WorkspaceId) -> None:
        self._connection = connection
        self._workspace_id = workspace_id

    async def nodes(self, ids: Sequence[NodeId]) -> dict[NodeId, GraphNode]:
        """Returns nodes by the ids that were asked for; of parts, the first part."""
        rows = [*await self._fetch(NODES, ids), *await self._fetch(FIRST_PARTS, ids)]
        return {NodeId(row["asked"]): _node(row) for row in rows}

    async def symbols(self, names: Sequence[str], most: int) -> list[GraphNode]:
        """Returns definitions whose qualified names end with these, at most so many of each."""
        return [_node(row) for row in await self._fetch(SYMBOLS, names, most)]

    async def uses(self, nodes: Sequence[NodeId], kinds: Sequence[ReferenceKind]) -> list[Use]:
        """Returns the names in nodes; one more than `MAX_USES` tells that there are more."""
        return _uses(await self._fetch(USES, nodes, [kind.value for kind in kinds], MAX_USES + 1))

    async def aliases(self, names: Sequence[str]) -> list[str]:
        """Returns what imports call names; one more than `MAX_SAME_NAME` tells of more."""
        return [row["alias"] for row in await self._fetch(ALIASES, names, MAX_SAME_NAME + 1)]

    async def users(
        self, names: Sequence[str], kinds: Sequence[ReferenceKind], most: int
    ) -> list[Use]:
        """Returns where names are used, of each so often at most."""
        return _uses(await self._fetch(USERS, names, [kind.value for kind in kinds], most))

    async def importers(self, stems: Sequence[str]) -> list[Use]:
        """Returns imports of modules whose last part is one of these."""
        return _uses(await self._fetch(IMPORTERS, stems, MAX_USES + 1))

    async def members(self, nodes: Sequence[NodeId]) -> dict[NodeId, list[GraphNode]]:
        """Returns what nodes contain; of one, one more than `MAX_MEMBERS` tells of more."""
        rows = await self._fetch(MEMBERS, nodes, MAX_MEMBERS + 1)
        return _grouped((NodeId(row["asked"]), _node(row)) for row in rows)

    async def fill(self, facts: Facts) -> bool:
        """Fetches the facts that are missing; returns whether any was."""
        filled = False
        if keys := facts.imports.take_missing(MOST_KEYS):
            rows = await self._fetch(IMPORTS_OF, keys, MAX_IMPORTS + 1)
            imports = _grouped((row["key"], Import(row[2], row[1], row[3])) for row in rows)
            facts.imports.put(keys, imports, MAX_IMPORTS)
            filled = True
        if pairs := facts.in_file.take_missing(MOST_KEYS):
            rows = await self._fetch(IN_FILE, [pair[0] for pair in pairs], [p[1] for p in pairs])
            nodes = map(_node, rows)
            facts.in_file.put(pairs, _grouped(((node.file_id, node.name), node) for node in nodes))
            filled = True
        if names := facts.by_name.take_missing(MOST_KEYS):
            rows = await self._fetch(BY_NAME, names, MAX_SAME_NAME + 1)
            named = _grouped((row["key"], _node(row)) for row in rows)
            facts.by_name.put(names, named, MAX_SAME_NAME)
            filled = True
        for known, sql in ((facts.by_stem, BY_STEM), (facts.by_folder, BY_FOLDER)):
            if stems := known.take_missing(MOST_KEYS):
                places = _files(await self._fetch(sql, stems, MAX_SAME_PLACE + 1))
                known.put(stems, places, MAX_SAME_PLACE)
                filled = True
        if paths := facts.by_path.take_missing(MOST_KEYS):
            facts.by_path.put(paths, _files(await self._fetch(BY_PATH, paths)))
            filled = True
        if classes := facts.bases.take_missing(MOST_KEYS):
            uses = await self.uses(classes, [ReferenceKind.INHERIT])
            facts.has_part_of_bases |= len(uses) > MAX_USES
            facts.bases.put(classes, _grouped((use.owner.id, use) for use in uses))
            filled = True
        if files := facts.first.take_missing(MOST_KEYS):
            nodes = map(_node, await self._fetch(FIRST, files))
            facts.first.put(files, _grouped((node.file_id, node) for node in nodes))
            filled = True
        return filled

    async def _fetch(self, sql: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        rows: Sequence[asyncpg.Record] = await self._connection.fetch(
            sql, self._workspace_id, *arguments
        )
        return rows


def _grouped(pairs: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _files(rows: Sequence[asyncpg.Record]) -> dict[str, list[SourceFile]]:
    return _grouped((row["key"], SourceFile(FileId(row["id"]), row["path"])) for row in rows)


def _uses(rows: Sequence[asyncpg.Record]) -> list[Use]:
    return [
        Use(
            _node(row),
            ReferenceKind(row["use_kind"]),
            row["name"],
            row["qualifier"],
            row["alias"],
            row["line"],
        )
        for row in rows
    ]


def _node(row: asyncpg.Record) -> GraphNode:
    return GraphNode(
        NodeId(row["id"]),
        FileId(row["file_id"]),
        row["path"],
        row["language"],
        NodeKind(row["kind"]),
        row["qualified_name"],
        row["parent_id"],
        row["ordinal"],
    )


def _hit(row: asyncpg.Record, workspace_name: str, score: float) -> Hit:
    return Hit(
        workspace_name=workspace_name,
        node_id=NodeId(row["id"]),
        path=row["path"],
        digest=row["digest"],
        kind=NodeKind(row["kind"]),
        qualified_name=row["qualified_name"],
        language=row["language"],
        start_byte=row["start_byte"],
        end_byte=row["end_byte"],
        start_line=row["start_line"],
        end_line=row["end_line"],
        score=score,
    )
