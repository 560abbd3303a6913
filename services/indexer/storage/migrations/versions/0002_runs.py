"""Paused, queued and scoped runs; the queue's holds; the time since which a node has its status.

Every key starts with `workspace_id`, but for a hold on all workspaces, whose id is 0.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ENDS = ("cancelled", "succeeded", "succeeded_with_warnings", "failed", "stale")
RUN_STEPS = {
    "queued": ("running", "paused", "cancelled", "stale"),
    "running": ("queued", "pausing", "cancelling", *ENDS),
    "pausing": ("paused", "running", "cancelling", *ENDS),
    "paused": ("queued", "cancelled"),
    "cancelling": ENDS,
    **dict.fromkeys(ENDS, ()),
}


def _allowed_steps() -> str:
    named = [(old, new) for old, following in RUN_STEPS.items() for new in following]
    return ", ".join(f"('{old}', '{new}')" for old, new in named)


STATEMENTS = (
    """
    ALTER TABLE runs
      ADD COLUMN priority smallint NOT NULL DEFAULT 2 CHECK (priority BETWEEN 1 AND 3),
      ADD COLUMN paths text[] NOT NULL DEFAULT '{}',
      ADD COLUMN retry_of uuid,
      ADD CONSTRAINT runs_phase_check CHECK (phase IN
        ('queued', 'scan', 'parse', 'embed', 'finished')),
      ADD CHECK (mode = 'scoped' OR cardinality(paths) = 0)
    """,
    "DROP TRIGGER runs_steps ON runs",
    f"""
    CREATE TRIGGER runs_steps BEFORE UPDATE OF state ON runs FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND (OLD.state, NEW.state) NOT IN ({_allowed_steps()}))
    EXECUTE FUNCTION refuse_step('state')
    """,
    # Many runs of a workspace may wait; one owner at a time writes it, across all replicas.
    "DROP INDEX runs_one_writer",
    """
    CREATE UNIQUE INDEX runs_one_writer ON runs (workspace_id)
      WHERE state IN ('running', 'pausing', 'cancelling')
    """,
    "DROP INDEX runs_unfinished",
    """
    CREATE INDEX runs_unfinished ON runs (priority DESC, seq) INCLUDE (workspace_id)
      WHERE finished_at IS NULL
    """,
    "CREATE INDEX runs_unfinished_of ON runs (workspace_id, seq) WHERE finished_at IS NULL",
    # What retention looks for.
    "CREATE INDEX runs_finished ON runs (finished_at) WHERE finished_at IS NOT NULL",
    # The nodes of a scoped run. Ids of nodes are never used again, so those of removed nodes do no
    # harm, and no foreign key has to be looked after when nodes go.
    """
    CREATE TABLE run_nodes (
      workspace_id int NOT NULL,
      run_id uuid NOT NULL,
      node_id bigint NOT NULL,
      given boolean NOT NULL,
      PRIMARY KEY (workspace_id, run_id, node_id),
      FOREIGN KEY (workspace_id, run_id) REFERENCES runs (workspace_id, id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE queue_holds (
      workspace_id int NOT NULL,
      kind text NOT NULL CHECK (kind IN ('pause', 'bulk_import')),
      token uuid NOT NULL DEFAULT gen_random_uuid(),
      lease_seconds double precision,
      expires_at timestamptz,
      created_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, kind),
      CHECK ((kind = 'bulk_import') = (expires_at IS NOT NULL)),
      CHECK ((kind = 'bulk_import') = (lease_seconds IS NOT NULL)),
      CHECK (kind <> 'bulk_import' OR workspace_id > 0)
    )
    """,
    # For a node in work, the time of its claim.
    "ALTER TABLE nodes ADD COLUMN status_since timestamptz NOT NULL DEFAULT now()",
)


def upgrade() -> None:
    """Adds to the tables."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
