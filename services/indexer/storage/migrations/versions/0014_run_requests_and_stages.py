"""Requests for a run that joined one which was there, and the stage at which a node failed.

The version before reads and writes none of them: what it joins is known by no id, and what it
fails has no stage, or that of an earlier failure.
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE run_requests (
      workspace_id int NOT NULL,
      request_id uuid NOT NULL,
      request_digest bytea NOT NULL,
      run_id uuid NOT NULL,
      created_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, request_id),
      FOREIGN KEY (workspace_id, run_id) REFERENCES runs (workspace_id, id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX run_requests_of_run ON run_requests (workspace_id, run_id)",
    # Of a failed node; null where no stage is known.
    "ALTER TABLE nodes ADD COLUMN error_stage text",
    "ALTER TABLE model_nodes ADD COLUMN error_stage text",
)


def upgrade() -> None:
    """Adds the table and the columns."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
