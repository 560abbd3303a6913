"""What is known of the HNSW indexes over vectors: whether one may be used, and how."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE vector_indexes (
      workspace_id int NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
      model_id int NOT NULL REFERENCES models (id) ON DELETE CASCADE,
      ef_search int CHECK (ef_search BETWEEN 1 AND 1000),
      recall double precision NOT NULL,
      nodes bigint NOT NULL,
      measured_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, model_id)
    )
    """,
)


def upgrade() -> None:
    """Adds the table."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
