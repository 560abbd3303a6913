"""Postings of terms, in blocks of nodes, and which nodes changed since the blocks were made."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STATEMENTS = (
    "CREATE SEQUENCE term_block_ids",
    # A block is never changed: it is replaced by one with another id.
    """
    CREATE TABLE term_blocks (
      workspace_id int NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
      id bigint NOT NULL,
      recipe text NOT NULL,
      first_node bigint NOT NULL,
      nodes int NOT NULL CHECK (nodes BETWEEN 1 AND 32768),
      mean_length double precision NOT NULL,
      node_ids bytea NOT NULL CHECK (length(node_ids) = 8 * nodes),
      PRIMARY KEY (workspace_id, id)
    )
    """,
    # No foreign keys: a check for each term would cost more than the row, and one of changes would
    # lock the workspace behind the nodes. The deletion of a workspace removes both by name.
    """
    CREATE TABLE term_postings (
      workspace_id int NOT NULL,
      term text COLLATE "C" NOT NULL,
      block_id bigint NOT NULL,
      entries bytea NOT NULL,
      PRIMARY KEY (workspace_id, term, block_id)
    )
    """,
    # Numbers do not shrink, and unpacking them would cost every search.
    "ALTER TABLE term_blocks ALTER COLUMN node_ids SET STORAGE EXTERNAL",
    "ALTER TABLE term_postings ALTER COLUMN entries SET STORAGE EXTERNAL",
    """
    CREATE TABLE term_changes (
      workspace_id int NOT NULL,
      seq bigint GENERATED ALWAYS AS IDENTITY,
      nodes bigint[] NOT NULL,
      PRIMARY KEY (workspace_id, seq)
    )
    """,
    # Services of this version note changes by the batch, and say so in a setting of their sessions.
    # For all others, those of the version before and whoever repairs by hand, the database does.
    """
    CREATE FUNCTION note_term_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO term_changes (workspace_id, nodes) VALUES (
        coalesce(NEW.workspace_id, OLD.workspace_id), ARRAY[coalesce(NEW.node_id, OLD.node_id)]);
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER node_terms_noted AFTER INSERT OR UPDATE OR DELETE ON node_terms FOR EACH ROW
    WHEN (current_setting('lodestone.notes_changes', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION note_term_change()
    """,
    # What is there already is a change since there were no blocks.
    """
    INSERT INTO term_changes (workspace_id, nodes)
    SELECT workspace_id, array_agg(node_id) FROM node_terms GROUP BY workspace_id
    """,
)


def upgrade() -> None:
    """Adds the tables."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
