"""Live workspaces: who watches each, by a lease, and which runs a watcher made."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENTS = (
    # A watcher's runs go before bulk and behind what a user waits for.
    "ALTER TABLE runs DROP CONSTRAINT runs_priority_check",
    "UPDATE runs SET priority = 4 WHERE priority = 3",
    """
    ALTER TABLE runs
      ADD CONSTRAINT runs_priority_check CHECK (priority BETWEEN 1 AND 4),
      ADD COLUMN trigger text NOT NULL DEFAULT 'caller' CONSTRAINT runs_trigger_check
        CHECK (trigger IN ('caller', 'changes', 'reconcile')),
      ADD COLUMN changed_at timestamptz
    """,
    # A row while a workspace is live. Its fence guards all that a watcher writes.
    """
    CREATE TABLE workspace_watches (
      workspace_id int PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
      fence bigint NOT NULL DEFAULT 0,
      owner uuid,
      lease_until timestamptz NOT NULL DEFAULT '-infinity',
      state text NOT NULL DEFAULT 'waiting' CHECK (state IN
        ('waiting', 'watching', 'unreachable', 'tree_missing')),
      resume_token text NOT NULL DEFAULT '',
      last_run uuid,
      reconciled_at timestamptz,
      fresh_at timestamptz,
      freshness_seconds double precision,
      created_at timestamptz NOT NULL DEFAULT now(),
      CHECK ((owner IS NULL) = (lease_until = '-infinity'))
    )
    """,
    "CREATE INDEX workspace_watches_open ON workspace_watches (lease_until, workspace_id)",
    "INSERT INTO workspace_watches (workspace_id) SELECT id FROM workspaces WHERE live",
)


def upgrade() -> None:
    """Adds the table and the columns."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
