"""Messages as plain data."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from lodestone.indexer.v1 import index_run_service_pb2, search_service_pb2, workspace_service_pb2
from services.client.model import (
    Context,
    ContextPiece,
    FileLines,
    Filter,
    Freshness,
    Hit,
    Reranking,
    Run,
    RunState,
    Workspace,
)

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

_FRESHNESS = search_service_pb2.NodeHit.Freshness
_RERANKINGS = {
    search_service_pb2.RERANKING_DONE: Reranking.DONE,
    search_service_pb2.RERANKING_TIMED_OUT: Reranking.TIMED_OUT,
    search_service_pb2.RERANKING_UNAVAILABLE: Reranking.UNAVAILABLE,
}
_STATE = index_run_service_pb2.IndexRun.State
_MODE = index_run_service_pb2.IndexRun.Mode


def filter_to_proto(only: Filter) -> search_service_pb2.SearchFilter:
    """Returns a filter's message."""
    return search_service_pb2.SearchFilter(
        paths=only.paths,
        languages=only.languages,
        kinds=only.kinds,
        symbols=only.symbols,
        changed_since_index_run=only.changed_since,
    )


def hit_of(message: search_service_pb2.NodeHit) -> Hit:
    """Returns a hit."""
    return Hit(
        workspace=message.workspace,
        node_id=message.node_id,
        path=message.path,
        kind=message.kind,
        name=message.qualified_name,
        language=message.language,
        start_line=message.start_line,
        end_line=message.end_line,
        start_byte=message.start_byte,
        end_byte=message.end_byte,
        file_digest=message.file_digest,
        score=message.score,
        text=message.text,
        freshness=freshness_of(message.freshness),
        matches=tuple((each.start, each.end) for each in message.matches),
        is_signature=message.is_signature,
    )


def freshness_of(value: search_service_pb2.NodeHit.Freshness.ValueType) -> Freshness:
    """Returns a freshness; one that this client does not know is unknown."""
    if value not in _FRESHNESS.values():
        return Freshness.UNKNOWN
    name = _FRESHNESS.Name(value).removeprefix("FRESHNESS_").lower()
    return Freshness(name) if name in set(Freshness) else Freshness.UNKNOWN


def reranking_of(value: search_service_pb2.Reranking.ValueType) -> Reranking:
    """Returns what became of reranking; what this client does not know is no reranking."""
    return _RERANKINGS.get(value, Reranking.NONE)


def context_of(message: search_service_pb2.BuildContextResponse) -> Context:
    """Returns a context."""
    return Context(
        text=message.text,
        tokens=message.tokens,
        pieces=tuple(
            ContextPiece(
                path=piece.path,
                start_line=piece.start_line,
                end_line=piece.end_line,
                node_ids=tuple(piece.node_ids),
                signature_only=piece.signature_only,
                workspace=piece.workspace,
            )
            for piece in message.pieces
        ),
        hits=tuple(map(hit_of, message.hits)),
        stale=message.stale,
        duplicates=message.duplicates,
        over_budget=message.over_budget,
        index_run=message.index_run,
        reranking=reranking_of(message.reranking),
    )


def lines_of(path: str, message: search_service_pb2.ReadLinesResponse) -> FileLines:
    """Returns the lines of a file."""
    return FileLines(
        path=path,
        text=message.text,
        start_line=message.start_line,
        end_line=message.end_line,
        line_count=message.line_count,
        file_digest=message.file_digest,
        freshness=freshness_of(message.freshness),
        language=message.language,
    )


def workspace_of(message: workspace_service_pb2.Workspace) -> Workspace:
    """Returns a workspace."""
    return Workspace(
        name=message.name,
        root=message.tree.root,
        directory=message.tree.directory,
        display_name=message.display_name,
        model=message.active_model,
        last_run=message.last_index_run,
    )


def run_of(message: index_run_service_pb2.IndexRun) -> Run:
    """Returns a run."""
    progress = message.progress
    return Run(
        name=message.name,
        state=_state_of(message.state),
        mode=_MODE.Name(message.mode).removeprefix("MODE_").lower(),
        nodes_total=progress.nodes_total,
        nodes_embedded=progress.nodes_embedded,
        nodes_reused=progress.nodes_reused,
        nodes_failed=progress.nodes_failed,
        files_failed=progress.files_failed,
        forwards=progress.forwards,
        created_at=_time_of(message.create_time) if message.HasField("create_time") else None,
        finished_at=_time_of(message.end_time) if message.HasField("end_time") else None,
        error=message.error.message if message.HasField("error") else "",
        warnings=tuple(message.warnings),
        trace_id=message.trace_id,
    )


def _state_of(value: index_run_service_pb2.IndexRun.State.ValueType) -> RunState:
    if value not in _STATE.values():
        return RunState.UNKNOWN
    name = _STATE.Name(value).removeprefix("STATE_").lower()
    return RunState(name) if name in set(RunState) else RunState.UNKNOWN


def _time_of(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
