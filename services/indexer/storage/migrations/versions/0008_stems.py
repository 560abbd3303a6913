"""Terms become stems, and nodes are found by the last part of their name.

Stems are made of the terms that are there: no file is read and no model asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import op
from sqlalchemy import text

from services.indexer.search.stemming import stem

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_CHUNK = 10_000

STATEMENTS = (
    # A column and not an expression: an index over one would not serve callers of some workspaces,
    # whose rows PostgreSQL filters before it calls a function that might tell of them.
    """
    ALTER TABLE nodes ADD COLUMN own_name text NOT NULL
      GENERATED ALWAYS AS (lower(split_part(qualified_name, '.', -1))) STORED
    """,
    "CREATE INDEX nodes_by_own_name ON nodes (workspace_id, own_name)",
)

_TERMS = """
SELECT unnest(terms) FROM content_terms UNION SELECT unnest(name_terms) FROM node_terms
"""

_STEMMED = """
SELECT array_agg(term) AS terms, array_agg(n) AS counts FROM (
  SELECT coalesce(s.stem, u.term) AS term, sum(u.n)::int AS n
  FROM unnest(x.terms, x.counts) u (term, n) LEFT JOIN stems s ON s.term = u.term
  GROUP BY 1) made
"""

UPDATES = tuple(
    f"UPDATE {table} x SET terms = made.terms, counts = made.counts "
    f"FROM {table} old, LATERAL ({_STEMMED.replace('x.', 'old.')}) made "
    f"WHERE {same} AND cardinality(old.terms) > 0"
    for table, same in (
        ("content_terms", "x.content_hash = old.content_hash"),
        ("node_terms", "x.workspace_id = old.workspace_id AND x.node_id = old.node_id"),
    )
)

NAMES = """
UPDATE node_terms x SET name_terms = ARRAY(
  SELECT coalesce(s.stem, u.term) FROM unnest(x.name_terms) WITH ORDINALITY u (term, place)
  LEFT JOIN stems s ON s.term = u.term GROUP BY 1 ORDER BY min(u.place))
"""


def upgrade() -> None:
    """Adds the index and stems the terms."""
    for statement in STATEMENTS:
        op.execute(statement)
    connection = op.get_bind()
    _fill_stems(connection)
    for statement in (*UPDATES, NAMES, "DROP TABLE stems"):
        op.execute(statement)


def _fill_stems(connection: Connection) -> None:
    op.execute("CREATE TEMP TABLE stems (term text PRIMARY KEY, stem text NOT NULL)")
    insert = text("INSERT INTO stems VALUES (:term, :stem)")
    statement = text(_TERMS).execution_options(yield_per=_CHUNK)
    pairs = ((row[0], stem(row[0])) for row in connection.execute(statement))
    changed = [{"term": term, "stem": made} for term, made in pairs if term != made]
    for start in range(0, len(changed), _CHUNK):
        connection.execute(insert, changed[start : start + _CHUNK])


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
