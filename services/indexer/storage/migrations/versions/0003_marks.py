"""What a check found to disagree, for a repair run to redo."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE index_marks (
      workspace_id int NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
      path text COLLATE "C" NOT NULL,
      node_id bigint NOT NULL DEFAULT 0,
      kind text NOT NULL,
      created_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, path, node_id)
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
