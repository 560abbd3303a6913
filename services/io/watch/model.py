"""The words of watching."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class EventType(StrEnum):
    """What happened; values are those of `lodestone.io.v1.FileEvent.Type`."""

    CREATED = "TYPE_CREATED"
    MODIFIED = "TYPE_MODIFIED"
    REMOVED = "TYPE_REMOVED"
    RENAMED = "TYPE_RENAMED"
    RESCAN = "TYPE_RESCAN"


class RescanCause(StrEnum):
    """Why events may be missing; values are labels of a metric."""

    OVERFLOW = "overflow"
    BURST = "burst"
    IGNORE_RULES = "ignore_rules"
    LINK = "link"
    RIGHTS = "rights"
    UNMOUNTED = "unmounted"
    UNWATCHED = "unwatched"
    TOKEN = "token"  # noqa: S105 - the name of a cause
    SLOW_SUBSCRIBER = "slow_subscriber"


class FileEvent(NamedTuple):
    """A change of one file, as callers are told; a tuple, because a burst makes many."""

    type: EventType
    path: str = ""
    old_path: str = ""
    origin_id: str = ""
    time_ns: int = 0


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How watching behaves; see `IoSettings` for what each means."""

    quiet_seconds: float = 0.05
    max_wait_seconds: float = 0.5
    heartbeat_seconds: float = 15.0
    check_seconds: float = 2.0
    rescan_seconds: float = 60.0
    grace_seconds: float = 60.0
    log_events: int = 50_000
    log_seconds: float = 600.0
    queue_bytes: int = 16 << 20
    rename_files: int = 10_000
    max_trees: int = 16
    max_streams: int = 64
