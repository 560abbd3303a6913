"""The two arms of a search, as SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pgvector import HalfVector

from services.indexer.model import ModelId, NodeId, NodeKind, WorkspaceId
from services.indexer.search.globs import globs_to_regex
from services.indexer.search.model import ALL, Hit, SearchFilter
from services.indexer.search.postings import K1, NAME_WEIGHT, B, TermCounts
from services.indexer.search.weights import DEFAULTS
from services.indexer.storage.partitions import vectors_table
from services.indexer.storage.vector_index import Partition, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.search.postings import Candidates
    from services.indexer.search.weights import Ranking
    from services.indexer.storage.database import Database
    from services.indexer.storage.term_blocks import TermBlocks
    from services.indexer.storage.vector_index import VectorIndexes

_FIRST_PIECE, _PIECE_GROWTH = 1000, 4
"""Candidates that are held to a filter at once, and how many times as many the next time."""

_MOST_DEFINITIONS = 50
"""Most nodes that are found by their name alone."""

_KINDS = {kind.value: kind for kind in NodeKind}

_PASSES = """
      AND (cardinality({0}::text[]) = 0 OR n.kind = ANY ({0}))
      AND (cardinality({1}::text[]) = 0 OR f.language = ANY ({1}))
      AND (cardinality({2}::text[]) = 0 OR n.qualified_name = ANY ({2}))
      AND ({3}::text IS NULL OR f.path ~ {3})
      AND ({4}::timestamptz IS NULL OR n.status_since >= {4})
"""
"""What a filter says of a node `n` and its file `f`."""

_FILTER = f"""
  AND EXISTS (SELECT 1 FROM nodes n JOIN files f
    ON f.workspace_id = n.workspace_id AND f.id = n.file_id
    WHERE n.workspace_id = x.workspace_id AND n.id = x.node_id {_PASSES})
"""

_ACTIVE = "AND EXISTS (SELECT FROM workspaces WHERE id = $1 AND active_model_id = {})"

HITS = """
SELECT n.id, f.path, f.digest, n.kind, n.qualified_name, f.language, n.start_byte, n.end_byte,
  n.start_line, n.end_line, n.part
FROM nodes n, LATERAL (
  SELECT path, digest, language FROM files
  WHERE workspace_id = $1 AND id = n.file_id OFFSET 0) f
WHERE n.workspace_id = $1 AND n.id = ANY ($2) AND n.status = 'embedded'
"""
"""By node: a plan of its own for some hundred nodes would read all files of the workspace."""


DEFINITIONS = """
SELECT x.node_id AS id FROM (
  SELECT n.workspace_id, n.id AS node_id FROM nodes n
  WHERE n.workspace_id = $1 AND n.own_name = ANY ($2)
    AND n.status = 'embedded' AND n.part = 0) x
WHERE true {} ORDER BY x.node_id LIMIT $3
"""
"""Nodes by the last part of their name, in lower case."""


_HOLDERS = """
SELECT term, df FROM unnest($2::text[]) WITH ORDINALITY u (term, place), LATERAL (
  SELECT count(*)::float8 AS df FROM node_terms
  WHERE workspace_id = $1 AND (terms @> ARRAY[term] OR name_terms @> ARRAY[term])) counted
ORDER BY place
"""
_NODES = "SELECT count(*)::float8 FROM node_terms WHERE workspace_id = $1"
COUNTS = f"SELECT ({_NODES})::int AS nodes, array_agg(df)::int[] AS holders FROM ({_HOLDERS}) held"
"""What terms are weighed by, of a workspace without blocks of postings."""

BM25 = f"""
WITH total AS MATERIALIZED (
  SELECT ({{nodes}}) AS n, greatest(avg(length), 1)::float8 AS mean
  FROM node_terms WHERE workspace_id = $1),
q AS MATERIALIZED (
  SELECT term, df, ln(1 + (total.n - df + 0.5) / (df + 0.5)) AS weight
  FROM total, ({{holders}}) counted WHERE df > 0),
rare AS MATERIALIZED (
  SELECT coalesce(array_agg(term) FILTER (WHERE df <= {{common_share}} * total.n),
    array_agg(term)) AS terms FROM q, total),
found AS MATERIALIZED (
  SELECT x.* FROM node_terms x, rare
  WHERE x.workspace_id = $1
    AND (x.terms && rare.terms OR x.name_terms && rare.terms)
    {{filter}})
SELECT found.node_id, sum(q.weight * (
    tf * {K1 + 1} / (tf + {K1} * ({1 - B} + {B} * found.length / total.mean))
    + CASE WHEN named THEN {NAME_WEIGHT} ELSE 0 END
  )) * (sum(q.weight) FILTER (WHERE tf > 0 OR named) / sum(q.weight))
    ^ {{coverage_power}} AS score
FROM found, total, q, LATERAL (
  SELECT coalesce(found.counts[array_position(found.terms, q.term)], 0)::float8
    AS tf, q.term = ANY (found.name_terms) AS named) held
GROUP BY found.node_id ORDER BY score DESC, found.node_id LIMIT $3
"""
"""The same scores as `search.postings` gives, of a workspace without blocks of postings."""

PASSING = """
SELECT x.node_id FROM (
  SELECT $1::int AS workspace_id, node_id, place
  FROM unnest($2::bigint[]) WITH ORDINALITY u (node_id, place)) x
WHERE true {filter} ORDER BY x.place LIMIT $3
"""
"""Of nodes in an order, the first that a filter lets through."""


class Scored(NamedTuple):
    """A node and one arm's score; higher is closer."""

    node_id: NodeId
    score: float


class SearchStore:
    """Finds nodes by vector and by terms; reads see one committed state each."""

    def __init__(
        self,
        database: Database,
        indexes: VectorIndexes | None = None,
        terms: TermBlocks | None = None,
        ranking: Ranking = DEFAULTS,
    ) -> None:
        self._database = database
        self._indexes = indexes
        self._terms = terms
        self._ranking = ranking

    async def dense(
        self,
        workspace_id: WorkspaceId,
        model_id: ModelId,
        vector: bytes,
        only: SearchFilter,
        limit: int,
    ) -> list[Scored]:
        """Returns the nodes with the largest inner product.

        They are the nearest ones exactly, unless nothing is filtered and the workspace is so large
        that an index was built and found good enough.

        The model must be the workspace's active one at the moment of the read, else there is none:
        its vectors may be going, or not be complete.

        Args:
            workspace_id: what is searched.
            model_id: the model of the vectors.
            vector: little-endian float16 values, L2-normalised.
            only: what may be found.
            limit: most nodes.
        """
        query = HalfVector(np.frombuffer(vector, dtype="<f2"))
        if only == ALL and self._indexes is not None:
            found = await self._by_index(workspace_id, model_id, query, limit)
            if found is not None:
                return found
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                # Ordered by an expression that no index has: a filter would make one miss rows.
                f"""
                SELECT x.node_id, -(x.embedding <#> $2) AS score
                FROM node_vectors_m{int(model_id)} x
                WHERE x.workspace_id = $1 {_ACTIVE.format(int(model_id))}
                  {_filter_sql(only, 4)}
                ORDER BY -(x.embedding <#> $2) DESC, x.node_id LIMIT $3
                """,
                workspace_id,
                query,
                limit,
                *_filter_values(only),
            )
        return list(map(Scored._make, rows))

    async def nearest_contents(
        self, workspace_id: WorkspaceId, model_id: ModelId, vector: bytes, limit: int
    ) -> list[bytes]:
        """Returns the content hashes of the nodes nearest to a vector, of any model."""
        query = HalfVector(np.frombuffer(vector, dtype="<f2"))
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                SELECT content_hash FROM node_vectors_m{int(model_id)}
                WHERE workspace_id = $1 ORDER BY -(embedding <#> $2) DESC, node_id LIMIT $3
                """,
                workspace_id,
                query,
                limit,
            )
        return [row["content_hash"] for row in rows]

    async def _by_index(
        self, workspace_id: WorkspaceId, model_id: ModelId, query: HalfVector, limit: int
    ) -> list[Scored] | None:
        """Returns what the index finds, None when there is none or it finds too few."""
        assert self._indexes is not None
        probes = await self._indexes.probes(workspace_id, model_id)
        if probes is None:
            return None
        within = Partition(vectors_table(model_id), workspace_id, active_model=model_id)
        async with self._database.connection() as connection:
            rows = await nearest(connection, within, query, limit, probes)
        if len(rows) < limit:
            return None
        return list(map(Scored._make, rows))

    async def lexical(
        self,
        workspace_id: WorkspaceId,
        terms: Sequence[str],
        only: SearchFilter,
        limit: int,
        counts: TermCounts | None = None,
    ) -> list[Scored]:
        """Returns the nodes with the best BM25 score (Robertson and Zaragoza, 2009).

        A term in a name or path adds to the score; a node that lacks terms loses some of it. Terms
        are weighed by `counts`, of the workspace alone where there are none.
        """
        if not terms:
            return []
        if self._terms is not None:
            candidates = await self._terms.candidates(workspace_id, terms, self._ranking, counts)
            if candidates is not None:
                return await self._best(workspace_id, candidates, only, limit)
        values, nodes, holders = [*_filter_values(only)], _NODES, _HOLDERS
        if counts is not None:
            nodes = f"{int(counts.nodes)}::float8"
            holders = f"SELECT * FROM unnest($2::text[], ${4 + len(values)}::float8[]) u (term, df)"
            values.append([float(held) for held in counts.holders])
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                BM25.format(
                    nodes=nodes,
                    holders=holders,
                    filter=_filter_sql(only, 4),
                    common_share=self._ranking.common_share,
                    coverage_power=self._ranking.coverage_power,
                ),
                workspace_id,
                list(terms),
                limit,
                *values,
            )
        return list(map(Scored._make, rows))

    async def term_counts(self, workspace_id: WorkspaceId, terms: Sequence[str]) -> TermCounts:
        """Returns what terms, each once, are weighed by in a workspace."""
        if self._terms is not None and terms:
            counts = await self._terms.counts(workspace_id, terms)
            if counts is not None:
                return counts
        async with self._database.connection() as connection:
            row = await connection.fetchrow(COUNTS, workspace_id, list(terms))
        return TermCounts(row["nodes"], tuple(row["holders"] or ()))

    async def _best(
        self, workspace_id: WorkspaceId, candidates: Candidates, only: SearchFilter, limit: int
    ) -> list[Scored]:
        """Returns the best candidates that a filter lets through; as many as there are."""
        if only == ALL:
            return list(map(Scored._make, candidates.best(limit)))
        found: list[Scored] = []
        statement = PASSING.format(filter=_filter_sql(only, 4))
        async with self._database.connection() as connection:
            for piece in candidates.pieces(max(limit, _FIRST_PIECE), _PIECE_GROWTH):
                rows = await connection.fetch(
                    statement,
                    workspace_id,
                    list(piece),
                    limit - len(found),
                    *_filter_values(only),
                )
                found += [Scored(row["node_id"], piece[row["node_id"]]) for row in rows]
                if len(found) == limit:
                    break
        return found

    async def definitions(
        self, workspace_id: WorkspaceId, names: Sequence[str], only: SearchFilter
    ) -> list[Scored]:
        """Returns nodes that are called by one of some names (lower case), the earliest first."""
        if not names:
            return []
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                DEFINITIONS.format(_filter_sql(only, 4)),
                workspace_id,
                list(names),
                _MOST_DEFINITIONS,
                *_filter_values(only),
            )
        return [Scored(NodeId(row["id"]), 1.0) for row in rows]

    async def hits(
        self,
        workspace_id: WorkspaceId,
        workspace_name: str,
        scores: Mapping[NodeId, float],
        only: SearchFilter = ALL,
    ) -> list[Hit]:
        """Returns what is known of nodes, in no order.

        Those that are gone by now are left out, and those that a filter does not let through: a
        node whose text stays may be called otherwise since it was found.
        """
        if not scores:
            return []
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                HITS + _filter_sql(only, 3, _PASSES),
                workspace_id,
                list(scores),
                *_filter_values(only),
            )
        # All at once: to look columns up by their names takes longer than all the rest.
        return [
            Hit._make(
                (
                    workspace_name,
                    node,
                    path,
                    digest,
                    _KINDS[kind],
                    qualified_name,
                    language,
                    *places,
                    scores[node],
                    part,
                )
            )
            for node, path, digest, kind, qualified_name, language, *places, part in rows
        ]


def _filter_sql(only: SearchFilter, first: int, conditions: str = _FILTER) -> str:
    if only == ALL:
        return ""
    return conditions.format(*(f"${first + number}" for number in range(5)))


def _filter_values(only: SearchFilter) -> tuple[Any, ...]:
    if only == ALL:
        return ()
    return (
        list(only.kinds),
        list(only.languages),
        list(only.symbols),
        globs_to_regex(only.paths) if only.paths else None,
        only.changed_since,
    )
