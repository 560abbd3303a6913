"""The two arms of a search, as SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pgvector import HalfVector

from services.indexer.model import Hit, ModelId, NodeId, NodeKind, SearchFilter, WorkspaceId
from services.indexer.search.globs import glob_to_regex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.storage.database import Database

_COMMON_SHARE = 0.2
"""A term that a larger share of nodes holds finds no candidates; it still counts in scores."""

_K1 = 1.2
_B = 0.75
_NAME_WEIGHT = 1.5
"""What a term in a node's name or path adds, as a multiple of the term's weight."""

_FILTER = """
  AND EXISTS (SELECT 1 FROM nodes n JOIN files f
    ON f.workspace_id = n.workspace_id AND f.id = n.file_id
    WHERE n.workspace_id = x.workspace_id AND n.id = x.node_id
      AND (cardinality({0}::text[]) = 0 OR n.kind = ANY ({0}))
      AND (cardinality({1}::text[]) = 0 OR f.language = ANY ({1}))
      AND (cardinality({2}::text[]) = 0 OR n.qualified_name = ANY ({2}))
      AND (cardinality({3}::text[]) = 0 OR f.path ~ ANY ({3})))
"""


HITS = """
SELECT n.id, n.kind, n.qualified_name, n.start_byte, n.end_byte, n.start_line, n.end_line,
  f.path, f.digest, f.language
FROM nodes n JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
WHERE n.workspace_id = $1 AND n.id = ANY ($2) AND n.status = 'embedded'
"""


@dataclass(frozen=True, slots=True)
class Scored:
    """A node and one arm's score; higher is closer."""

    node_id: NodeId
    score: float


class SearchStore:
    """Finds nodes by vector and by terms; reads see one committed state each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def dense(
        self,
        workspace_id: WorkspaceId,
        model_id: ModelId,
        vector: bytes,
        only: SearchFilter,
        limit: int,
    ) -> list[Scored]:
        """Returns the nodes with the largest inner product, exactly: no index leaves one out.

        Args:
            workspace_id: what is searched.
            model_id: the model of the vectors.
            vector: little-endian float16 values, L2-normalised.
            only: what may be found.
            limit: most nodes.
        """
        query = HalfVector(np.frombuffer(vector, dtype="<f2"))
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                SELECT x.node_id, -(x.embedding <#> $2) AS score
                FROM node_vectors_m{int(model_id)} x
                WHERE x.workspace_id = $1 {_filter_sql(only, 4)}
                ORDER BY x.embedding <#> $2, x.node_id LIMIT $3
                """,
                workspace_id,
                query,
                limit,
                *_filter_values(only),
            )
        return [Scored(NodeId(row["node_id"]), row["score"]) for row in rows]

    async def lexical(
        self,
        workspace_id: WorkspaceId,
        terms: Sequence[str],
        only: SearchFilter,
        limit: int,
    ) -> list[Scored]:
        """Returns the nodes with the best BM25 score (Robertson and Zaragoza, 2009)."""
        if not terms:
            return []
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                f"""
                WITH total AS MATERIALIZED (
                  SELECT count(*)::float8 AS n, greatest(avg(length), 1)::float8 AS mean
                  FROM node_terms WHERE workspace_id = $1),
                q AS MATERIALIZED (
                  SELECT term, df, ln(1 + (total.n - df + 0.5) / (df + 0.5)) AS weight
                  FROM total, unnest($2::text[]) term, LATERAL (
                    SELECT count(*)::float8 AS df FROM node_terms
                    WHERE workspace_id = $1 AND (terms @> ARRAY[term] OR name_terms @> ARRAY[term])
                  ) counted
                  WHERE df > 0),
                rare AS MATERIALIZED (
                  SELECT coalesce(array_agg(term) FILTER (WHERE df <= {_COMMON_SHARE} * total.n),
                    array_agg(term)) AS terms FROM q, total),
                found AS MATERIALIZED (
                  SELECT x.* FROM node_terms x, rare
                  WHERE x.workspace_id = $1
                    AND (x.terms && rare.terms OR x.name_terms && rare.terms)
                    {_filter_sql(only, 4)})
                SELECT found.node_id, sum(q.weight * (
                    tf * {_K1 + 1} / (tf + {_K1} * ({1 - _B} + {_B} * found.length / total.mean))
                    + CASE WHEN q.term = ANY (found.name_terms) THEN {_NAME_WEIGHT} ELSE 0 END
                  )) AS score
                FROM found, total, q, LATERAL (
                  SELECT coalesce(found.counts[array_position(found.terms, q.term)], 0)::float8
                    AS tf) held
                GROUP BY found.node_id ORDER BY score DESC, found.node_id LIMIT $3
                """,
                workspace_id,
                list(terms),
                limit,
                *_filter_values(only),
            )
        return [Scored(NodeId(row["node_id"]), row["score"]) for row in rows]

    async def hits(
        self, workspace_id: WorkspaceId, workspace_name: str, scores: Mapping[NodeId, float]
    ) -> list[Hit]:
        """Returns what is known of nodes, in no order; those that are gone by now are left out."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                HITS,
                workspace_id,
                list(scores),
            )
        return [
            Hit(
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
                score=scores[NodeId(row["id"])],
            )
            for row in rows
        ]


def _filter_sql(only: SearchFilter, first: int) -> str:
    if only == SearchFilter():
        return ""
    return _FILTER.format(*(f"${first + number}" for number in range(4)))


def _filter_values(only: SearchFilter) -> tuple[Any, ...]:
    if only == SearchFilter():
        return ()
    return (
        list(only.kinds),
        list(only.languages),
        list(only.symbols),
        [glob_to_regex(pattern) for pattern in only.paths],
    )
