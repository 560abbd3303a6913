"""Workspaces, files, nodes, runs, models, cache and the lexical index.

Every key starts with `workspace_id`, so that a tenant is a partition, and later a shard.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ENDS = ("cancelled", "succeeded", "succeeded_with_warnings", "failed", "stale")
RUN_STEPS = {
    "queued": ("running", "cancelled", "stale"),
    "running": ("queued", "pausing", "cancelling", *ENDS),
    "pausing": ("paused", "cancelling", *ENDS),
    "paused": ("queued", "cancelled"),
    "cancelling": ENDS,
    **dict.fromkeys(ENDS, ()),
}
NODE_STEPS = {
    "pending": ("processing", "embedded"),
    "processing": ("embedded", "failed", "pending"),
    "embedded": ("pending",),
    "failed": ("pending",),
}


def _step_trigger(table: str, column: str, steps: dict[str, tuple[str, ...]]) -> str:
    """Returns a trigger that fires on the steps that are not named, and so costs others nothing."""
    named = [(old, new) for old, following in steps.items() for new in following]
    pairs = ", ".join(f"('{old}', '{new}')" for old, new in named)
    return f"""
    CREATE TRIGGER {table}_steps BEFORE UPDATE OF {column} ON {table} FOR EACH ROW
    WHEN (OLD.{column} <> NEW.{column} AND (OLD.{column}, NEW.{column}) NOT IN ({pairs}))
    EXECUTE FUNCTION refuse_step('{column}')
    """


STATEMENTS = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    # Fencing tokens: strictly increasing over all tables and replicas.
    "CREATE SEQUENCE fences",
    "CREATE SEQUENCE node_ids",
    """
    CREATE TABLE models (
      id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      name text NOT NULL,
      fingerprint text NOT NULL UNIQUE,
      dimensions int NOT NULL CHECK (dimensions BETWEEN 1 AND 16000),
      distance text NOT NULL DEFAULT 'inner_product' CHECK (distance = 'inner_product'),
      max_tokens int NOT NULL,
      created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE workspaces (
      id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      name text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9-]{4,63}$'),
      root text NOT NULL,
      directory text NOT NULL,
      display_name text NOT NULL DEFAULT '',
      live boolean NOT NULL DEFAULT false,
      active_model_id int REFERENCES models (id),
      last_run_id uuid,
      created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE files (
      workspace_id int NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
      id bigint GENERATED ALWAYS AS IDENTITY,
      path text COLLATE "C" NOT NULL,
      state text NOT NULL CHECK (state IN ('indexed', 'skipped')),
      skip_reason text,
      digest bytea NOT NULL CHECK (length(digest) = 32),
      generation bigint NOT NULL DEFAULT 1,
      recipe text NOT NULL,
      language text NOT NULL,
      line_count int NOT NULL,
      size bigint NOT NULL,
      mtime_ns bigint NOT NULL,
      ctime_ns bigint NOT NULL,
      inode bigint NOT NULL,
      settled boolean NOT NULL,
      has_syntax_errors boolean NOT NULL DEFAULT false,
      PRIMARY KEY (workspace_id, id),
      UNIQUE (workspace_id, path),
      CHECK ((state = 'skipped') = (skip_reason IS NOT NULL))
    )
    """,
    """
    CREATE TABLE nodes (
      workspace_id int NOT NULL,
      id bigint NOT NULL,
      file_id bigint NOT NULL,
      generation bigint NOT NULL,
      ordinal int NOT NULL,
      parent_id bigint,
      kind text NOT NULL CHECK (kind IN
        ('module', 'class', 'function', 'method', 'block', 'section', 'window')),
      qualified_name text NOT NULL,
      start_byte bigint NOT NULL,
      end_byte bigint NOT NULL,
      start_line int NOT NULL,
      end_line int NOT NULL,
      segments bigint[],
      part int NOT NULL,
      part_count int NOT NULL,
      token_estimate int NOT NULL,
      content_hash bytea NOT NULL CHECK (length(content_hash) = 32),
      status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'processing', 'embedded', 'failed')),
      attempt int NOT NULL DEFAULT 0,
      crash_count int NOT NULL DEFAULT 0,
      fence bigint NOT NULL DEFAULT 0,
      lease_owner uuid,
      lease_until timestamptz,
      available_at timestamptz NOT NULL DEFAULT now(),
      error_reason text,
      error_message text,
      embedded_run uuid,
      updated_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, id),
      FOREIGN KEY (workspace_id, file_id) REFERENCES files (workspace_id, id) ON DELETE CASCADE,
      CHECK (start_byte <= end_byte AND start_line <= end_line),
      CHECK ((status = 'processing') = (lease_until IS NOT NULL)),
      CHECK ((status = 'processing') = (lease_owner IS NOT NULL)),
      CHECK (status <> 'failed' OR error_reason IS NOT NULL)
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)
    """,
    "CREATE INDEX nodes_by_file ON nodes (workspace_id, file_id, ordinal)",
    "CREATE INDEX nodes_pending ON nodes (workspace_id, id) WHERE status = 'pending'",
    "CREATE INDEX nodes_leased ON nodes (workspace_id, id) WHERE status = 'processing'",
    "CREATE INDEX nodes_failed ON nodes (workspace_id, id) WHERE status = 'failed'",
    """
    CREATE TABLE runs (
      workspace_id int NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
      id uuid NOT NULL DEFAULT gen_random_uuid(),
      seq bigint GENERATED ALWAYS AS IDENTITY,
      request_id uuid NOT NULL,
      request_digest bytea NOT NULL,
      mode text NOT NULL CHECK (mode IN ('full', 'incremental', 'scoped', 'repair', 'embed_only')),
      exclude text[] NOT NULL DEFAULT '{}',
      state text NOT NULL DEFAULT 'queued' CHECK (state IN
        ('queued', 'running', 'pausing', 'paused', 'cancelling',
         'cancelled', 'succeeded', 'succeeded_with_warnings', 'failed', 'stale')),
      phase text NOT NULL DEFAULT 'queued',
      attempt int NOT NULL DEFAULT 0,
      fence bigint NOT NULL DEFAULT 0,
      owner uuid,
      lease_until timestamptz,
      created_at timestamptz NOT NULL DEFAULT now(),
      started_at timestamptz,
      updated_at timestamptz NOT NULL DEFAULT now(),
      finished_at timestamptz,
      cancel_requested_at timestamptz,
      version bigint NOT NULL DEFAULT 1,
      files_scanned bigint NOT NULL DEFAULT 0,
      files_skipped bigint NOT NULL DEFAULT 0,
      files_failed bigint NOT NULL DEFAULT 0,
      scan_finished boolean NOT NULL DEFAULT false,
      files_to_parse bigint NOT NULL DEFAULT 0,
      files_parsed bigint NOT NULL DEFAULT 0,
      nodes_total bigint NOT NULL DEFAULT 0,
      nodes_total_final boolean NOT NULL DEFAULT false,
      nodes_pending bigint NOT NULL DEFAULT 0,
      nodes_embedded bigint NOT NULL DEFAULT 0,
      nodes_reused bigint NOT NULL DEFAULT 0,
      nodes_failed bigint NOT NULL DEFAULT 0,
      nodes_removed bigint NOT NULL DEFAULT 0,
      forwards bigint NOT NULL DEFAULT 0,
      tokens bigint NOT NULL DEFAULT 0,
      skipped_by_reason jsonb NOT NULL DEFAULT '{}',
      stage_seconds jsonb NOT NULL DEFAULT '{}',
      warnings text[] NOT NULL DEFAULT '{}',
      error_reason text,
      error_message text,
      PRIMARY KEY (workspace_id, id),
      CHECK ((finished_at IS NOT NULL) = (state IN
        ('cancelled', 'succeeded', 'succeeded_with_warnings', 'failed', 'stale'))),
      CHECK ((state IN ('running', 'pausing', 'cancelling')) = (owner IS NOT NULL)),
      CHECK ((owner IS NOT NULL) = (lease_until IS NOT NULL)),
      CHECK (state NOT IN ('failed', 'stale') OR error_reason IS NOT NULL)
    ) WITH (fillfactor = 50)
    """,
    # One unfinished run per workspace, across all replicas.
    """
    CREATE UNIQUE INDEX runs_one_writer ON runs (workspace_id)
      WHERE state IN ('queued', 'running', 'pausing', 'paused', 'cancelling')
    """,
    "CREATE UNIQUE INDEX runs_by_request ON runs (workspace_id, request_id)",
    "CREATE UNIQUE INDEX runs_by_seq ON runs (workspace_id, seq DESC)",
    "CREATE INDEX runs_newest ON runs (seq DESC)",
    "CREATE INDEX runs_unfinished ON runs (seq) WHERE finished_at IS NULL",
    "CREATE INDEX runs_by_mode ON runs (mode, started_at DESC)",
    "CREATE INDEX runs_by_state ON runs (state, phase, started_at DESC)",
    """
    CREATE TABLE run_outcomes (
      workspace_id int NOT NULL,
      run_id uuid NOT NULL,
      entity text NOT NULL CHECK (entity IN ('file', 'node')),
      path text COLLATE "C" NOT NULL,
      node_id bigint NOT NULL DEFAULT 0,
      qualified_name text NOT NULL DEFAULT '',
      result text NOT NULL CHECK (result IN
        ('ok', 'reused', 'skipped', 'failed', 'timeout', 'stale')),
      stage text NOT NULL,
      error_reason text,
      error_message text,
      attempts int NOT NULL DEFAULT 1,
      duration_seconds double precision NOT NULL DEFAULT 0,
      recorded_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (workspace_id, run_id, path, entity, node_id),
      FOREIGN KEY (workspace_id, run_id) REFERENCES runs (workspace_id, id) ON DELETE CASCADE
    )
    """,
    # What a text became. Shared by all workspaces: the key is the text itself.
    """
    CREATE TABLE embedding_cache (
      model_id int NOT NULL REFERENCES models (id) ON DELETE CASCADE,
      content_hash bytea NOT NULL,
      embedding halfvec NOT NULL,
      token_count int NOT NULL,
      truncated boolean NOT NULL,
      created_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (model_id, content_hash)
    )
    """,
    """
    CREATE TABLE content_terms (
      content_hash bytea PRIMARY KEY,
      terms text[] NOT NULL,
      counts int[] NOT NULL,
      length int NOT NULL,
      CHECK (cardinality(terms) = cardinality(counts))
    )
    """,
    # The lexical index; its partitions, one a workspace, are made with the workspace.
    """
    CREATE TABLE node_terms (
      workspace_id int NOT NULL,
      node_id bigint NOT NULL,
      fence bigint NOT NULL,
      terms text[] NOT NULL,
      counts int[] NOT NULL,
      length int NOT NULL,
      name_terms text[] NOT NULL,
      PRIMARY KEY (workspace_id, node_id),
      FOREIGN KEY (workspace_id, node_id) REFERENCES nodes (workspace_id, id) ON DELETE CASCADE
    ) PARTITION BY LIST (workspace_id)
    """,
    # The state machines: a step that they do not name is refused, whoever tries it.
    """
    CREATE FUNCTION refuse_step() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      RAISE EXCEPTION 'no step leads from % to % in %',
        to_jsonb(OLD) ->> TG_ARGV[0], to_jsonb(NEW) ->> TG_ARGV[0], TG_TABLE_NAME
        USING ERRCODE = 'check_violation';
    END $$
    """,
    _step_trigger("runs", "state", RUN_STEPS),
    _step_trigger("nodes", "status", NODE_STEPS),
    "CREATE INDEX node_terms_terms ON node_terms USING gin (terms)",
    "CREATE INDEX node_terms_names ON node_terms USING gin (name_terms)",
)


def upgrade() -> None:
    """Creates the tables."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuses: an index is rebuilt from files, not turned back."""
    raise NotImplementedError("Remove the data folder and index again instead.")
