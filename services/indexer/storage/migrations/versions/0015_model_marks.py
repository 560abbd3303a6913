"""Marks of vectors by the model that they are of, and failed nodes of all models by their ids.

The version before reads and writes no such mark: what it marks of vectors stands in `index_marks`
and is the active model's.
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Of a node's vector, the active model's as well; a model that goes takes its marks along.
    """
    CREATE TABLE model_marks (
      workspace_id int NOT NULL,
      model_id int NOT NULL,
      node_id bigint NOT NULL,
      kind text NOT NULL,
      created_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, model_id, node_id),
      FOREIGN KEY (workspace_id, model_id) REFERENCES workspace_models (workspace_id, model_id)
        ON DELETE CASCADE
    )
    """,
    # Lists of failures go by node, and for each by model.
    """
    CREATE INDEX model_nodes_failed_by_node ON model_nodes (workspace_id, node_id, model_id)
      WHERE status = 'failed'
    """,
)


def upgrade() -> None:
    """Adds the table and the index."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
