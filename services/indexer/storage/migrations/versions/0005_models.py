"""Models side by side: which a workspace has, and the nodes that each has no vector of yet."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_STEPS = {
    "pending": ("processing",),
    "processing": ("failed", "pending"),
    "failed": ("pending",),
}
"""Of a row in `model_nodes`; there is no step to `embedded`: the row goes, a vector comes."""


def _allowed_steps() -> str:
    named = [(old, new) for old, following in _STEPS.items() for new in following]
    return ", ".join(f"('{old}', '{new}')" for old, new in named)


STATEMENTS = (
    """
    CREATE TABLE workspace_models (
      workspace_id int NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
      model_id int NOT NULL REFERENCES models (id),
      created_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, model_id)
    )
    """,
    "CREATE INDEX workspace_models_of_model ON workspace_models (model_id)",
    """
    INSERT INTO workspace_models (workspace_id, model_id)
    SELECT id, active_model_id FROM workspaces WHERE active_model_id IS NOT NULL
    """,
    # The time since which no workspace has a model: what is cached of it is kept for a while.
    "ALTER TABLE models ADD COLUMN released_at timestamptz",
    """
    UPDATE models m SET released_at = now()
    WHERE NOT EXISTS (SELECT 1 FROM workspace_models w WHERE w.model_id = m.id)
    """,
    # Vectors and nodes that were written before the last switch have fences of their own each.
    """
    ALTER TABLE workspaces ADD COLUMN switch_fence bigint NOT NULL DEFAULT 0,
      ADD COLUMN switched_at timestamptz NOT NULL DEFAULT '-infinity',
      ADD COLUMN model_chosen boolean NOT NULL DEFAULT false
    """,
    # A model's queue in a workspace where it is not the active one. A node has a row here or a
    # vector of the model, never both, never neither. No foreign key: whoever changes which nodes
    # or models there are holds the workspace's row, and removes what hangs on them.
    """
    CREATE TABLE model_nodes (
      workspace_id int NOT NULL,
      model_id int NOT NULL,
      node_id bigint NOT NULL,
      status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('failed', 'pending', 'processing')),
      attempt int NOT NULL DEFAULT 0,
      crash_count int NOT NULL DEFAULT 0,
      fence bigint NOT NULL DEFAULT 0,
      lease_owner uuid,
      lease_until timestamptz,
      available_at timestamptz NOT NULL DEFAULT now(),
      error_reason text,
      error_message text,
      updated_at timestamptz NOT NULL DEFAULT now(),
      status_since timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, model_id, node_id),
      CHECK ((status = 'processing') = (lease_until IS NOT NULL)),
      CHECK ((status = 'processing') = (lease_owner IS NOT NULL)),
      CHECK (status <> 'failed' OR error_reason IS NOT NULL)
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)
    """,
    """
    CREATE INDEX model_nodes_pending ON model_nodes (workspace_id, model_id, node_id)
      WHERE status = 'pending'
    """,
    """
    CREATE INDEX model_nodes_leased ON model_nodes (workspace_id, model_id, node_id)
      WHERE status = 'processing'
    """,
    """
    CREATE INDEX model_nodes_failed ON model_nodes (workspace_id, model_id, node_id)
      WHERE status = 'failed'
    """,
    f"""
    CREATE TRIGGER model_nodes_steps BEFORE UPDATE OF status ON model_nodes FOR EACH ROW
    WHEN (OLD.status <> NEW.status AND (OLD.status, NEW.status) NOT IN ({_allowed_steps()}))
    EXECUTE FUNCTION refuse_step('status')
    """,
    # The model that a run embeds with where it is not the active one.
    """
    ALTER TABLE runs ADD COLUMN model_id int REFERENCES models (id),
      ADD CHECK (model_id IS NULL OR mode = 'embed_only')
    """,
    # One row for each file that a run looked into, beside those of what failed.
    "ALTER TABLE run_outcomes DROP CONSTRAINT run_outcomes_result_check",
    """
    ALTER TABLE run_outcomes
      ADD CONSTRAINT run_outcomes_result_check CHECK (result IN
        ('ok', 'reused', 'skipped', 'removed', 'failed', 'timeout', 'stale')),
      ADD COLUMN nodes_embedded int NOT NULL DEFAULT 0,
      ADD COLUMN nodes_reused int NOT NULL DEFAULT 0,
      ADD COLUMN nodes_failed int NOT NULL DEFAULT 0,
      ADD COLUMN nodes_pending int NOT NULL DEFAULT 0
    """,
    """
    CREATE INDEX run_outcomes_failed ON run_outcomes (workspace_id, run_id, path, entity, node_id)
      WHERE result IN ('failed', 'timeout', 'stale')
    """,
)


def upgrade() -> None:
    """Adds to the tables."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
