"""Runs and their outcomes as protobuf, and what is asked of a run."""

from __future__ import annotations

import re
from uuid import UUID

from lodestone.indexer.v1 import index_run_service_pb2
from services.indexer.convert import duration, failure_to_proto, timestamp
from services.indexer.run import Outcome, OutcomeResult, Run, RunMode
from services.indexer.run_spec import IfRunning, RunPhase, RunPriority, RunSpec
from services.indexer.scope import normal_entries
from services.indexer.transitions import RunState
from services.runtime.errors import InvalidRequestError

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_RUN_NAME = re.compile(rf"^workspaces/([a-z0-9-]{{4,63}})/indexRuns/({_UUID})$")
_STATE = index_run_service_pb2.IndexRun.State
_MODE = index_run_service_pb2.IndexRun.Mode
_PHASE = index_run_service_pb2.IndexRun.Phase
_PRIORITY = index_run_service_pb2.IndexRun.Priority
_TRIGGER = index_run_service_pb2.IndexRun.Trigger
_IF_RUNNING = index_run_service_pb2.CreateIndexRunRequest.IfRunning
_RESULT = index_run_service_pb2.Outcome.Result
_ENTITY = index_run_service_pb2.Outcome.Entity
STATES = {state: _STATE.Value(f"STATE_{state.name}") for state in RunState}
MODES = {mode: _MODE.Value(f"MODE_{mode.name}") for mode in RunMode}
PHASES = {phase: _PHASE.Value(f"PHASE_{phase.name}") for phase in RunPhase}
RESULTS = {result: _RESULT.Value(f"RESULT_{result.name}") for result in OutcomeResult}


def run_id_of(name: str) -> tuple[str, UUID]:
    """Returns workspace id and run id of a run's resource name. Raises InvalidRequestError."""
    match = _RUN_NAME.match(name)
    if match is None:
        raise InvalidRequestError(
            "The name is not of the form workspaces/{workspace}/indexRuns/{uuid}.",
            metadata={"name": "not a run's name"},
        )
    return match[1], UUID(match[2])


def spec_of(
    request: index_run_service_pb2.CreateIndexRunRequest,
) -> RunSpec:
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
    if request.model and mode is not RunMode.EMBED_ONLY:
        raise InvalidRequestError(
            "A model is named by an embed-only run alone.",
            metadata={"model": "does not go with the mode"},
        )
    priority = RunPriority.INTERACTIVE if mode is RunMode.SCOPED else RunPriority.NORMAL
    if request.model:
        priority = RunPriority.BACKGROUND
    if request.priority != _PRIORITY.PRIORITY_UNSPECIFIED:
        priority = RunPriority[_PRIORITY.Name(request.priority).removeprefix("PRIORITY_")]
    return RunSpec(
        mode=mode,
        exclude=tuple(request.exclude),
        paths=normal_entries(request.paths),
        node_ids=tuple(dict.fromkeys(request.node_ids)),
        priority=priority,
        model=request.model,
    )


def if_running_of(
    wish: index_run_service_pb2.CreateIndexRunRequest.IfRunning.ValueType,
) -> IfRunning:
    """Returns what is to happen beside an unfinished run."""
    if wish == _IF_RUNNING.IF_RUNNING_UNSPECIFIED:
        return IfRunning.JOIN
    return IfRunning(_IF_RUNNING.Name(wish).removeprefix("IF_RUNNING_").lower())


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
        trigger=_TRIGGER.Value(f"TRIGGER_{run.trigger.name}"),
        change_time=timestamp(run.changed_at),
        model=run.model_name,
        trace_id=run.trace_id,
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
        nodes_embedded=outcome.nodes_embedded,
        nodes_reused=outcome.nodes_reused,
        nodes_failed=outcome.nodes_failed,
        nodes_pending=outcome.nodes_pending,
    )


def results_of(results: list[index_run_service_pb2.Outcome.Result.ValueType]) -> list[str]:
    """Returns the results to list by name; none lists all."""
    wanted = {number: result for result, number in RESULTS.items()}
    return [wanted[result].value for result in results if result in wanted]
