"""What the io service can be told: `LODESTONE_IO_*`."""

from __future__ import annotations

import os
import resource
from dataclasses import fields
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.io.model import SymlinkPolicy
from services.io.root_rules import DEFAULT_MAX_ROOTS
from services.io.roots import parse_roots
from services.io.watch.model import WatchOptions
from services.runtime.settings import Names, ServiceSettings

MAX_WORKERS = 64
MIN_PERMITS, MAX_PERMITS = 4, 1024
DEFAULT_PERMITS = 50
MAX_PERMITS_BY_SYSTEM = 100


def default_parse_workers() -> int:
    """Returns half the cores, 1 to 4: the model's forward needs the others."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // 2))


class IoSettings(ServiceSettings):
    """Settings of the io service."""

    model_config = SettingsConfigDict(env_prefix="LODESTONE_IO_", frozen=True, extra="ignore")

    listen: Annotated[
        str,
        Field(
            pattern=r"^(unix:.+|(\d{1,3}\.){3}\d{1,3}:\d{1,5}|\[[0-9a-f:]+\]:\d{1,5}|localhost:\d{1,5})$"
        ),
    ] = "127.0.0.1:7301"
    """Address of the gRPC server: `unix:/path` or `127.0.0.1:port`."""

    roots: str = ""
    """Folders that the server may touch: `name=/folder,other=/folder`."""

    symlink_policy: SymlinkPolicy = SymlinkPolicy.WITHIN_ROOT
    """What happens at a symbolic link: `deny`, `within_root` or `across_roots`. The file system's
    root confines nothing: beneath it `within_root` means within the tree of the call."""

    max_file_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 2 << 20
    """Largest file that is scanned, parsed and read."""

    max_plain_text_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 256 << 10
    """Largest file without grammar that is scanned: longer ones are data such as JSON dumps."""

    max_nodes_per_file: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    """Most nodes of one file; with more it is cut into windows, or skipped as too large."""

    parse_workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = Field(
        default_factory=default_parse_workers
    )
    """Processes that parse; half the cores by default, at most 4."""

    parse_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 20.0
    """Longest time that one file may take to parse."""

    parse_memory_bytes: Annotated[int, Field(ge=256 << 20, le=1 << 40)] = 2 << 30
    """Most memory (address space) of one process that parses."""

    parse_nice: Annotated[int, Field(ge=0, le=19)] = 0
    """How much the processes that parse give way to others."""

    max_open_files: Annotated[int, Field(ge=0, le=MAX_PERMITS)] = 0
    """Most files that are read at once; 0 takes `fd_limit`."""

    fd_limit: Annotated[int, Field(ge=0)] = 0
    """As `max_open_files`, taken into 4 to 1024; 0 takes a third of the system's limit, at most
    100, or 50 where the system has none."""

    read_threads: Annotated[int, Field(ge=1, le=64)] = 8
    """Threads that read and scan."""

    max_answer_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 30)] = 32 << 20
    """Most bytes of texts in one answer; what goes beyond is refused item by item."""

    cache_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    """Bytes of files that are held for later reads; 0 holds none."""

    state_dir: str = ""
    """Folder for what must outlast a restart: answered edits and added roots. Replicas that share
    a tree share it. Empty keeps both in memory alone."""

    read_only: bool = False
    """Whether every write is refused; the roots are then told as read-only."""

    write_threads: Annotated[int, Field(ge=2, le=64)] = 8
    """Threads that write."""

    write_lock_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Longest wait for a file, or a request id, that another call has under way."""

    journal_entries: Annotated[int, Field(ge=1000, le=10_000_000)] = 100_000
    """Most requests that wrote which are remembered for a day; see docs/files.md."""

    journal_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 40)] = 256 << 20
    """Most bytes of what is remembered of them in `state_dir`."""
    root_parents: Names = ()
    """Folders, by commas, in or beneath which calls may add roots; empty, and no call changes
    roots or is told where they lie. With tokens it takes the scope `admin`; without, whoever can
    connect may expose what lies beneath."""

    max_roots: Annotated[int, Field(ge=1, le=100_000)] = DEFAULT_MAX_ROOTS
    """Most roots, those of `LODESTONE_IO_ROOTS` among them; no call adds more."""

    skip_globs: Names = ()
    """More names of files that are skipped as generated, e.g. `*.gen.go,fixtures_*.json`."""

    watch_quiet_seconds: Annotated[float, Field(ge=0.001, le=60)] = 0.05
    """Changes are told when none came for so long."""

    watch_max_wait_seconds: Annotated[float, Field(ge=0.001, le=600)] = 0.5
    """Changes are told after so long, whatever comes."""

    watch_heartbeat_seconds: Annotated[float, Field(ge=0.05, le=3600)] = 15.0
    """A watch on which nothing happens tells so this often."""

    watch_check_seconds: Annotated[float, Field(ge=0.05, le=3600)] = 2.0
    """How often is looked at what no event tells of: the root, and files behind links."""

    watch_rescan_seconds: Annotated[float, Field(ge=0.05, le=86400)] = 60.0
    """How often callers are told to scan where the system does not let all folders be watched."""

    watch_grace_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """How long a tree is watched on after its last caller went, so that one may resume."""

    watch_log_events: Annotated[int, Field(ge=100, le=10_000_000)] = 50_000
    """Most events of a tree that are kept for slow and returning callers."""

    watch_log_seconds: Annotated[float, Field(ge=0.05, le=86400)] = 600.0
    """How long they are kept."""

    watch_queue_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 16 << 20
    """Most bytes of the kernel's events of a tree that wait to be looked at; some 32 each."""

    watch_rename_files: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """Most files beneath a renamed folder that are told one by one; beyond, callers must scan."""

    watch_max_trees: Annotated[int, Field(ge=1, le=1024)] = 16
    """Most trees that are watched at once. Each takes an inotify instance and two threads."""

    watch_max_streams: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Most callers that watch at once."""

    @field_validator("root_parents")
    @classmethod
    def _check_parents(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(path.startswith("/") for path in value):
            raise ValueError("write absolute paths")
        return value

    @field_validator("roots")
    @classmethod
    def _check_roots(cls, value: str) -> str:
        parse_roots(value, SymlinkPolicy.DENY)
        return value


def watch_options(settings: IoSettings) -> WatchOptions:
    """Returns how watching behaves."""
    names = (field.name for field in fields(WatchOptions))
    return WatchOptions(**{name: getattr(settings, f"watch_{name}") for name in names})


def read_permits(settings: IoSettings) -> int:
    """Returns how many files may be open for reading at once."""
    if settings.max_open_files:
        return settings.max_open_files
    if settings.fd_limit:
        return min(max(settings.fd_limit, MIN_PERMITS), MAX_PERMITS)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft <= 0:
        return DEFAULT_PERMITS
    return max(1, min(soft // 3, MAX_PERMITS_BY_SYSTEM))
