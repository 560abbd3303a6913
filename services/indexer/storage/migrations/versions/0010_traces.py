"""The trace of the call that asked for a run, so that whoever makes it continues that trace."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    ALTER TABLE runs ADD COLUMN traceparent text NOT NULL DEFAULT ''
      CHECK (traceparent ~ '^(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?$')
    """,
)


def upgrade() -> None:
    """Adds the column."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
