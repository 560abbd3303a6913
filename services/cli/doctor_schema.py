"""What this version's schema has: indexes, tables, sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.storage.partitions import vectors_table

if TYPE_CHECKING:
    import asyncpg

INDEXES = (
    *("content_terms_pkey", "embedding_cache_pkey", "index_marks_pkey"),
    *("files_pkey", "files_workspace_id_path_key", "files_by_folder", "files_by_stem"),
    *("model_marks_pkey", "models_pkey", "models_fingerprint_key"),
    *("model_nodes_pkey", "model_nodes_pending", "model_nodes_leased", "model_nodes_failed"),
    *("model_nodes_failed_by_node", "node_references_pkey", "node_references_by_module"),
    *("node_references_by_name", "node_references_imports"),
    *("node_terms_pkey", "node_terms_terms", "node_terms_names"),
    *("nodes_pkey", "nodes_by_file", "nodes_by_name", "nodes_by_own_name"),
    *("nodes_pending", "nodes_leased", "nodes_failed"),
    *("queue_holds_pkey", "run_nodes_pkey", "run_outcomes_pkey", "run_outcomes_failed"),
    *("run_requests_pkey", "run_requests_of_run"),
    *("runs_pkey", "runs_by_request", "runs_by_seq", "runs_by_mode", "runs_by_state"),
    *("runs_one_writer", "runs_newest", "runs_finished", "runs_unfinished", "runs_unfinished_of"),
    *("term_blocks_pkey", "term_changes_pkey", "term_postings_pkey"),
    *("unused_texts_pkey", "unused_texts_by_time", "upkeep_times_pkey", "vector_indexes_pkey"),
    *("workspace_models_pkey", "workspace_models_of_model"),
    *("workspace_watches_pkey", "workspace_watches_open"),
    *("workspaces_pkey", "workspaces_name_key"),
)
"""Indexes of this version's schema, without which statements read whole tables."""

SEQUENCES = ("fences", "node_ids", "term_block_ids")
"""Sequences that belong to no column of a table."""

_KEY = "_pkey"
LISTS = "_lists"
"""How the name of an index ends that the indexers build by themselves."""

_MODELS = "SELECT id FROM models"
_LISTS = """
SELECT format('node_vectors_m%s_w%s', model_id, workspace_id) AS partition FROM vector_indexes
WHERE probes IS NOT NULL
  AND to_regclass(format('node_vectors_m%s_w%s', model_id, workspace_id)) IS NOT NULL
"""


def tables() -> tuple[str, ...]:
    """Returns the tables that migrations make, each of which has a key; models add others."""
    keys = (name for name in INDEXES if name.endswith(_KEY))
    return (*(name.removesuffix(_KEY) for name in keys), "alembic_version")


async def model_indexes(connection: asyncpg.Connection, timeout_seconds: float) -> tuple[str, ...]:
    """Returns the indexes over vectors that this version's schema has for what is registered.

    The table of each model has a key, and so has each of its partitions by belonging to it. An
    index of lists has a partition whose searches read one.
    """
    models = await connection.fetch(_MODELS, timeout=timeout_seconds)
    lists = await connection.fetch(_LISTS, timeout=timeout_seconds)
    return (
        *(f"{vectors_table(row['id'])}{_KEY}" for row in models),
        *(f"{row['partition']}{LISTS}" for row in lists),
    )
