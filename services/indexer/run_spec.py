"""What a run is asked to be: plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from services.indexer.model import RunMode

if TYPE_CHECKING:
    from services.indexer.transitions import RunState


class RunPhase(StrEnum):
    """What a run does at the moment."""

    QUEUED = "queued"
    SCAN = "scan"
    PARSE = "parse"
    EMBED = "embed"
    FINISHED = "finished"


class RunPriority(IntEnum):
    """Who goes first: the larger number."""

    BACKGROUND = 1
    NORMAL = 2
    INTERACTIVE = 3


class IfRunning(StrEnum):
    """What happens to a new run while another of its workspace is not finished."""

    JOIN = "join"
    FAIL = "fail"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a caller asks for."""

    mode: RunMode = RunMode.INCREMENTAL
    exclude: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    node_ids: tuple[int, ...] = ()
    priority: RunPriority = RunPriority.NORMAL


@dataclass(frozen=True, slots=True)
class RunWishes:
    """What the owner of a run learns when it beats."""

    state: RunState
    cancel: bool
    give_way: bool
    """Whether a run of a higher priority waits for this one's workspace."""
