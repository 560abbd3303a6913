"""What nodes refer to by name, and what finds definitions and modules by theirs."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Names as they are written: what they mean is looked up when it is asked, so that an edit of
    # one file writes no row of another.
    """
    CREATE TABLE node_references (
      workspace_id int NOT NULL,
      node_id bigint NOT NULL,
      ordinal int NOT NULL,
      file_id bigint NOT NULL,
      kind text NOT NULL CHECK (kind IN ('call', 'inherit', 'import')),
      name text NOT NULL,
      qualifier text NOT NULL,
      alias text NOT NULL,
      line int NOT NULL,
      module text GENERATED ALWAYS AS (
        CASE WHEN kind = 'import' THEN split_part(qualifier, '/', -1) END) STORED,
      PRIMARY KEY (workspace_id, node_id, ordinal),
      FOREIGN KEY (workspace_id, node_id) REFERENCES nodes (workspace_id, id) ON DELETE CASCADE
    ) PARTITION BY LIST (workspace_id)
    """,
    """
    CREATE INDEX node_references_by_name
      ON node_references (workspace_id, name, kind, node_id, ordinal)
    """,
    """
    CREATE INDEX node_references_imports
      ON node_references (workspace_id, file_id, node_id, ordinal) WHERE kind = 'import'
    """,
    """
    CREATE INDEX node_references_by_module
      ON node_references (workspace_id, module, node_id, ordinal) WHERE kind = 'import'
    """,
    """
    DO $$ DECLARE workspace int; BEGIN
      FOR workspace IN SELECT id FROM workspaces LOOP
        EXECUTE format('CREATE TABLE node_references_w%s PARTITION OF node_references
          FOR VALUES IN (%s)', workspace, workspace);
      END LOOP;
    END $$
    """,
    # Columns, not expressions in the indexes: these would not serve callers of some workspaces,
    # whose rows PostgreSQL filters before it calls a function that might tell of them.
    """
    ALTER TABLE nodes ADD COLUMN name text NOT NULL
      GENERATED ALWAYS AS (split_part(qualified_name, '.', -1)) STORED
    """,
    """
    CREATE INDEX nodes_by_name ON nodes (workspace_id, name, file_id, ordinal)
      WHERE kind IN ('class', 'function', 'method') AND part = 0
    """,
    # The name by which a file is imported: that of its folder, when it is what the folder shows.
    r"""
    ALTER TABLE files
      ADD COLUMN stem text COLLATE "C" NOT NULL GENERATED ALWAYS AS (split_part(
        regexp_replace(path, '(/(__init__|index|mod))?\.[^./]*$', ''), '/', -1)) STORED,
      ADD COLUMN folder text COLLATE "C" NOT NULL
        GENERATED ALWAYS AS (split_part(path, '/', -2)) STORED
    """,
    "CREATE INDEX files_by_stem ON files (workspace_id, stem, path)",
    "CREATE INDEX files_by_folder ON files (workspace_id, folder, path)",
)


def upgrade() -> None:
    """Adds the table and the indexes."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
