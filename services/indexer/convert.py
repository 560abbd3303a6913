"""The indexer's words as protobuf, and back."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import UUID

from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lodestone.indexer.v1 import (
    index_run_service_pb2,
    maintenance_service_pb2,
    queue_service_pb2,
    search_service_pb2,
    workspace_service_pb2,
)
from lodestone.io.v1 import tree_pb2
from services.indexer.model import (
    Failure,
    NodeKind,
    Outcome,
    OutcomeResult,
    Run,
    RunMode,
    SearchFilter,
    Tree,
    Workspace,
)
from services.indexer.run_spec import IfRunning, RunPhase, RunPriority, RunSpec
from services.indexer.scope import normal_entries
from services.indexer.transitions import RunState
from services.runtime.errors import InvalidRequestError, NotImplementedYetError

if TYPE_CHECKING:
    from datetime import datetime

    from services.indexer.search.engine import FoundText
    from services.indexer.storage.marks import Mark
    from services.indexer.storage.queue_admin import FailedNode, QueueStats

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_RUN_NAME = re.compile(rf"^workspaces/([a-z0-9-]{{4,63}})/indexRuns/({_UUID})$")
_STATE = index_run_service_pb2.IndexRun.State
_MODE = index_run_service_pb2.IndexRun.Mode
_PHASE = index_run_service_pb2.IndexRun.Phase
_PRIORITY = index_run_service_pb2.IndexRun.Priority
_IF_RUNNING = index_run_service_pb2.CreateIndexRunRequest.IfRunning
_RESULT = index_run_service_pb2.Outcome.Result
_ENTITY = index_run_service_pb2.Outcome.Entity
_FRESHNESS = search_service_pb2.NodeHit.Freshness

STATES = {state: _STATE.Value(f"STATE_{state.name}") for state in RunState}
MODES = {mode: _MODE.Value(f"MODE_{mode.name}") for mode in RunMode}
PHASES = {phase: _PHASE.Value(f"PHASE_{phase.name}") for phase in RunPhase}
RESULTS = {result: _RESULT.Value(f"RESULT_{result.name}") for result in OutcomeResult}


def workspace_id_of(name: str) -> str:
    """Returns the id in a workspace's resource name."""
    return name.removeprefix("workspaces/")


def run_id_of(name: str) -> tuple[str, UUID]:
    """Returns workspace id and run id of a run's resource name. Raises InvalidRequestError."""
    match = _RUN_NAME.match(name)
    if match is None:
        raise InvalidRequestError(
            "The name is not of the form workspaces/{workspace}/indexRuns/{uuid}.",
            metadata={"name": "not a run's name"},
        )
    return match[1], UUID(match[2])


def spec_of(request: index_run_service_pb2.CreateIndexRunRequest) -> RunSpec:
    """Returns what a request asks a run to be.

    Raises:
        InvalidRequestError: the fields do not go together.
        PathOutsideTreeError: a path leads out of the tree.
    """
    mode = RunMode.INCREMENTAL
    if request.mode != _MODE.MODE_UNSPECIFIED:
        mode = RunMode(_MODE.Name(request.mode).removeprefix("MODE_").lower())
    named = bool(request.paths or request.node_ids)
    if named != (mode is RunMode.SCOPED):
        raise InvalidRequestError(
            "A scoped run names paths or nodes, and no other run does.",
            metadata={"mode": "does not go with paths and node_ids"},
        )
    priority = RunPriority.INTERACTIVE if mode is RunMode.SCOPED else RunPriority.NORMAL
    if request.priority != _PRIORITY.PRIORITY_UNSPECIFIED:
        priority = RunPriority(request.priority)
    return RunSpec(
        mode=mode,
        exclude=tuple(request.exclude),
        paths=normal_entries(request.paths),
        node_ids=tuple(dict.fromkeys(request.node_ids)),
        priority=priority,
    )


def if_running_of(
    wish: index_run_service_pb2.CreateIndexRunRequest.IfRunning.ValueType,
) -> IfRunning:
    """Returns what is to happen beside an unfinished run."""
    if wish == _IF_RUNNING.IF_RUNNING_UNSPECIFIED:
        return IfRunning.JOIN
    return IfRunning(_IF_RUNNING.Name(wish).removeprefix("IF_RUNNING_").lower())


def tree_of(message: tree_pb2.Tree) -> Tree:
    """Returns a tree."""
    return Tree(message.root, message.directory)


def workspace_to_proto(workspace: Workspace) -> workspace_service_pb2.Workspace:
    """Returns a workspace's message."""
    name = f"workspaces/{workspace.name}"
    last = workspace.last_run_id
    return workspace_service_pb2.Workspace(
        name=name,
        tree=tree_pb2.Tree(root=workspace.tree.root, directory=workspace.tree.directory),
        display_name=workspace.display_name,
        live=workspace.live,
        active_model=workspace.active_model_name or "",
        create_time=timestamp(workspace.created_at),
        last_index_run=f"{name}/indexRuns/{last}" if last else "",
    )


def run_to_proto(run: Run) -> index_run_service_pb2.IndexRun:
    """Returns a run's message."""
    return index_run_service_pb2.IndexRun(
        name=run.name,
        state=STATES[run.state],
        mode=MODES[run.mode],
        progress=_progress(run),
        error=None if run.error is None else failure_to_proto(run.error),
        attempt=run.attempt,
        create_time=timestamp(run.created_at),
        start_time=timestamp(run.started_at),
        update_time=timestamp(run.updated_at),
        end_time=timestamp(run.finished_at),
        warnings=run.warnings,
        phase=PHASES[run.phase],
        priority=_PRIORITY.Value(f"PRIORITY_{run.priority.name}"),
        paths=run.paths,
        retry_of=f"workspaces/{run.workspace_name}/indexRuns/{run.retry_of}"
        if run.retry_of
        else "",
    )


def _progress(run: Run) -> index_run_service_pb2.Progress:
    counters = run.counters
    return index_run_service_pb2.Progress(
        files_scanned=counters.files_scanned,
        files_skipped=counters.files_skipped,
        files_failed=counters.files_failed,
        scan_finished=run.scan_finished,
        files_to_parse=counters.files_to_parse,
        files_parsed=counters.files_parsed,
        nodes_total=max(0, counters.nodes_total),
        nodes_total_final=run.nodes_total_final,
        nodes_embedded=counters.nodes_embedded,
        nodes_reused=max(0, counters.nodes_reused),
        nodes_failed=counters.nodes_failed,
        nodes_removed=counters.nodes_removed,
        nodes_pending=max(0, counters.nodes_pending),
        forwards=counters.forwards,
        tokens=counters.tokens,
        stage_durations={stage: duration(seconds) for stage, seconds in run.stage_seconds.items()},
        skipped_by_reason=run.skipped_by_reason,
    )


def outcome_to_proto(outcome: Outcome) -> index_run_service_pb2.Outcome:
    """Returns an outcome's message."""
    return index_run_service_pb2.Outcome(
        entity=_ENTITY.Value(f"ENTITY_{outcome.entity.upper()}"),
        path=outcome.path,
        qualified_name=outcome.qualified_name,
        result=RESULTS[outcome.result],
        stage=outcome.stage,
        error=None if outcome.failure is None else failure_to_proto(outcome.failure),
        attempts=outcome.attempts,
        duration=duration(outcome.duration_seconds),
    )


def results_of(results: list[index_run_service_pb2.Outcome.Result.ValueType]) -> list[str]:
    """Returns the results to list by name; none lists all."""
    wanted = {number: result for result, number in RESULTS.items()}
    return [wanted[result].value for result in results if result in wanted]


def failure_to_proto(failure: Failure) -> status_pb2.Status:
    """Returns a failure as a status with its reason."""
    status = status_pb2.Status(code=code_pb2.Code.Value("INTERNAL"), message=failure.message)
    detail = status.details.add()
    detail.Pack(error_details_pb2.ErrorInfo(reason=failure.reason, domain="indexer.lodestone"))
    return status


def filter_of(message: search_service_pb2.SearchFilter) -> SearchFilter:
    """Returns a filter. Raises InvalidRequestError and NotImplementedYetError."""
    kinds = {kind.value for kind in NodeKind}
    if unknown := [kind for kind in message.kinds if kind not in kinds]:
        raise InvalidRequestError(
            f"There is no kind {unknown[0]!r}; kinds are {', '.join(sorted(kinds))}.",
            metadata={"filter.kinds": "unknown kind"},
        )
    if message.changed_since_index_run:
        raise NotImplementedYetError("This version cannot search what changed since a run.")
    return SearchFilter(
        languages=tuple(message.languages),
        kinds=tuple(message.kinds),
        paths=tuple(message.paths),
        symbols=tuple(message.symbols),
    )


def hit_to_proto(found: FoundText) -> search_service_pb2.NodeHit:
    """Returns a hit's message; without a text it was not asked for, or is not there any more."""
    hit = found.hit
    return search_service_pb2.NodeHit(
        workspace=f"workspaces/{hit.workspace_name}",
        node_id=hit.node_id,
        path=hit.path,
        kind=hit.kind.value,
        qualified_name=hit.qualified_name,
        language=hit.language,
        start_byte=hit.start_byte,
        end_byte=hit.end_byte,
        start_line=hit.start_line,
        end_line=hit.end_line,
        file_digest=hit.digest,
        score=hit.score,
        text=found.text or "",
        freshness=_freshness(found),
    )


def _freshness(found: FoundText) -> search_service_pb2.NodeHit.Freshness.ValueType:
    if found.failure is None:
        fresh = found.text is not None
        return _FRESHNESS.FRESHNESS_FRESH if fresh else _FRESHNESS.FRESHNESS_UNSPECIFIED
    if found.failure.reason == "ERROR_REASON_FILE_NOT_FOUND":
        return _FRESHNESS.FRESHNESS_GONE
    return _FRESHNESS.FRESHNESS_CHANGED


def queue_stats_to_proto(stats: QueueStats) -> queue_service_pb2.GetQueueStatsResponse:
    """Returns what the queue holds."""
    return queue_service_pb2.GetQueueStatsResponse(
        counts=[
            queue_service_pb2.QueueCount(
                kind=item.name[0],
                status=item.name[1],
                count=item.count,
                oldest_age=duration(item.oldest_seconds),
            )
            for item in stats.nodes
        ],
        workers=[
            queue_service_pb2.WorkerCount(
                worker=item.name[0],
                processing=item.count,
                stale=item.stale,
                oldest_age=duration(item.oldest_seconds),
            )
            for item in stats.workers
        ],
        paused=stats.on_hold,
        stale=sum(item.stale for item in stats.workers),
        runs=[
            queue_service_pb2.RunCount(
                state=item.name[0], count=item.count, oldest_age=duration(item.oldest_seconds)
            )
            for item in stats.runs
        ],
        bulk_import_end_time=timestamp(stats.import_expires_at),
    )


def failed_node_to_proto(node: FailedNode) -> queue_service_pb2.FailedNode:
    """Returns a failed node's message."""
    return queue_service_pb2.FailedNode(
        node_id=node.id,
        path=node.path,
        qualified_name=node.qualified_name,
        error=failure_to_proto(node.failure),
        attempts=node.attempts,
    )


def disagreement_to_proto(mark: Mark) -> maintenance_service_pb2.Disagreement:
    """Returns what disagrees as a message."""
    return maintenance_service_pb2.Disagreement(
        path=mark.path, qualified_name=mark.qualified_name, kind=mark.kind.value
    )


def duration(seconds: float) -> duration_pb2.Duration:
    """Returns seconds as a message."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message


def timestamp(value: datetime | None) -> timestamp_pb2.Timestamp | None:
    """Returns a time as a message."""
    if value is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(value)
    return message
