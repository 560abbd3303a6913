"""Texts that are cached and that no node has, since when; and when a task last looked at all.

The version before knows neither table and goes on: it forgets nothing.
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE unused_texts (
      model_id int NOT NULL,
      content_hash bytea NOT NULL,
      since timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (model_id, content_hash)
    )
    """,
    "CREATE INDEX unused_texts_by_time ON unused_texts (since)",
    """
    CREATE TABLE upkeep_times (
      task text PRIMARY KEY,
      started_at timestamptz NOT NULL
    )
    """,
)


def upgrade() -> None:
    """Makes the tables."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
