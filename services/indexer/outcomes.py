"""How files and nodes ended in a run, for its ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.model import CHANGED_REASONS, Failure
from services.indexer.run import Outcome, OutcomeResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from services.indexer.model import ClaimedNode, NodeId, ParsedFile

_TIMEOUT = "ERROR_REASON_TIMEOUT"


def result_of(failure: Failure) -> OutcomeResult:
    """Returns what a failure is called: one of time, of a file that kept changing, or any other."""
    if failure.reason == _TIMEOUT:
        return OutcomeResult.TIMEOUT
    return OutcomeResult.STALE if failure.reason in CHANGED_REASONS else OutcomeResult.FAILED


def parsed_outcome(file: ParsedFile, seconds: float, attempts: int = 1) -> Outcome:
    """Returns the outcome of a file that was cut into nodes, or left out for a reason.

    Args:
        file: the file.
        seconds: its share of the time of its batch.
        attempts: times that it was parsed in this run: more than one if it changed meanwhile.
    """
    if file.skip_reason is None:
        result, failure = OutcomeResult.OK, None
    else:
        result = OutcomeResult.SKIPPED
        failure = Failure(file.skip_reason, "The file is left out.")
    return Outcome("file", file.path, result, "parse", 0, "", failure, attempts, seconds)


def unchanged_outcome(path: str, seconds: float) -> Outcome:
    """Returns the outcome of a file that was read and is what it was; `seconds` is its share."""
    return Outcome("file", path, OutcomeResult.REUSED, "parse", duration_seconds=seconds)


def removed_outcome(path: str, stage: str, seconds: float) -> Outcome:
    """Returns the outcome of a file that is gone; `seconds` is its share, 0 at the stage `scan`."""
    return Outcome("file", path, OutcomeResult.REMOVED, stage, duration_seconds=seconds)


def failed_file(path: str, failure: Failure, seconds: float, attempts: int = 1) -> Outcome:
    """Returns the outcome of a file that could not be read or parsed, as `parsed_outcome`."""
    result = OutcomeResult.TIMEOUT if failure.reason == _TIMEOUT else OutcomeResult.FAILED
    return Outcome("file", path, result, "parse", 0, "", failure, attempts, seconds)


def failed_nodes(
    nodes: Iterable[ClaimedNode], failures: Mapping[NodeId, Failure], stage: str, seconds: float
) -> list[Outcome]:
    """Returns the outcomes of nodes that failed for good, each with its share of its batch."""
    return [
        Outcome(
            entity="node",
            path=node.path,
            result=result_of(failures[node.id]),
            stage=stage,
            node_id=node.id,
            qualified_name=node.qualified_name,
            failure=failures[node.id],
            attempts=node.attempt,
            duration_seconds=seconds,
        )
        for node in nodes
    ]
