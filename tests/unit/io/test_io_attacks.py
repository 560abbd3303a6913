"""Hostile files end as outcomes, in bounded time and memory, and their neighbours are parsed.

Red (TIMEOUT) when the comments above a declaration are kept by copying the list of those before.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lodestone.io.v1 import parse_service_pb2
from services.io.model import FileToParse, Root, SymlinkPolicy
from services.io.parser.file import ParseLimits
from services.io.parser.pool import ParseJob, WorkerOptions, WorkerPool
from services.runtime.status import read_status
from tests.unit.io.attacks import BOMBS, BYTES, COUNTS, NESTING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.unit.io.harness import MakeFiles

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS = 60.0
MEMORY_BYTES = 1 << 30
MAX_FILE_BYTES = 2 << 20
MAX_NODES = 10_000
MAX_ANSWER_BYTES = 8 << 20
RAISED_MAX_FILE_BYTES = 128 << 20
SAMPLE_SECONDS = 0.01
NEIGHBOUR = "def fine():\n    return 1\n"


@dataclass
class Ended:
    """How the files of some calls ended."""

    outcomes: dict[str, str] = field(default_factory=dict)
    neighbours: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    answer_bytes: dict[str, int] = field(default_factory=dict)


async def attack(
    top: Path,
    names: Iterable[str],
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Ended:
    """Parses each file between two neighbours, all in one worker as it is by default."""
    (top / "fine.py").write_text(NEIGHBOUR)
    ended = Ended()
    limits = ParseLimits(max_file_bytes, MAX_NODES, 256)
    pool = WorkerPool(WorkerOptions(1, seconds, memory_bytes))
    pool.start()
    try:
        await _parse(pool, top, "fine.py", limits, Ended())  # what the start takes counts for none
        for name in names:
            started = time.perf_counter()
            async with _sampled(pool, name, ended):
                await _parse(pool, top, name, limits, ended)
            ended.seconds[name] = time.perf_counter() - started
    finally:
        await pool.close()
    return ended


async def _parse(pool: WorkerPool, top: Path, name: str, limits: ParseLimits, ended: Ended) -> None:
    files = tuple(FileToParse(i, path) for i, path in enumerate(("fine.py", name, "fine.py")))
    root = Root("test", str(top), SymlinkPolicy.WITHIN_ROOT)
    async for answer in pool.parse(ParseJob((root,), "", limits, files)):
        message = parse_service_pb2.ParseFilesResponse.FromString(answer)
        outcome: str = message.WhichOneof("outcome") or ""
        if outcome == "error":
            outcome = read_status(message.error).reason.removeprefix("ERROR_REASON_")
        if message.index != 1:
            ended.neighbours.append(outcome)
            continue
        ended.outcomes[name] = outcome
        ended.answer_bytes[name] = len(answer)
        assert len(message.parsed.nodes) <= MAX_NODES


@asynccontextmanager
async def _sampled(pool: WorkerPool, name: str, ended: Ended) -> AsyncIterator[None]:
    """Notes the most memory that workers used: often, as one that dies takes its count along."""

    def sample() -> None:
        peak = max(map(_peak_bytes, pool.pids), default=0)
        ended.peak_bytes[name] = max(peak, ended.peak_bytes.get(name, 0))

    async def go_on() -> None:
        while True:
            sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    task = asyncio.create_task(go_on())
    try:
        yield
        sample()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended this moment
        return 0
    found = (int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    return next(found, 0)


def check_bounds(ended: Ended, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
    assert ended.neighbours == ["parsed"] * (2 * len(ended.outcomes))
    assert {n: s for n, s in ended.seconds.items() if s > seconds} == {}
    assert {n: b for n, b in ended.peak_bytes.items() if b > memory_bytes} == {}
    assert {n: b for n, b in ended.answer_bytes.items() if b > MAX_ANSWER_BYTES} == {}


async def test_files_nested_deeper_than_any_stack_are_parsed(make_files: MakeFiles) -> None:
    """Red with RecursionError or a dead worker where a walk recurses."""
    ended = await attack(make_files(NESTING), NESTING)
    assert ended.outcomes == dict.fromkeys(NESTING, "parsed")
    check_bounds(ended)


async def test_files_of_huge_counts_and_lengths_are_parsed_in_time(make_files: MakeFiles) -> None:
    ended = await attack(make_files(COUNTS), COUNTS)
    too_many = {"headings.md"}
    assert {n for n, outcome in ended.outcomes.items() if outcome == "skipped"} <= too_many
    assert set(ended.outcomes.values()) <= {"parsed", "skipped"}
    check_bounds(ended)


async def test_what_a_grammar_chokes_on_fails_alone(make_files: MakeFiles) -> None:
    """The kernel bounds a worker's memory, the pool its time; both end as reasons."""
    ended = await attack(make_files(BOMBS), BOMBS, seconds=8.0)
    assert ended.outcomes.keys() == BOMBS.keys()
    assert set(ended.outcomes.values()) <= {"parsed", "WORKER_DIED", "INTERNAL", "TIMEOUT"}
    check_bounds(ended, seconds=60.0)  # a worker that dies is tried again


async def test_bytes_that_are_no_text_are_skipped_and_odd_text_is_parsed(
    make_files: MakeFiles,
) -> None:
    ended = await attack(make_files({n: content for n, (content, _) in BYTES.items()}), BYTES)
    assert ended.outcomes == {name: outcome for name, (_, outcome) in BYTES.items()}
    check_bounds(ended)


async def test_a_file_over_the_limit_is_skipped_unread(make_files: MakeFiles) -> None:
    """A sparse terabyte would take minutes to read, and a line of 50 MB a worker's memory."""
    top = make_files({"line.py": "x = '" + "a" * (50 << 20) + "'\n"})
    (top / "functions.py").write_text("def f():0\n" * 1_000_000)
    with (top / "sparse.py").open("wb") as file:
        file.truncate(1 << 40)
    names = ("line.py", "functions.py", "sparse.py")
    ended = await attack(top, names)
    assert ended.outcomes == dict.fromkeys(names, "skipped")
    assert max(ended.seconds.values()) < 5.0
    assert max(ended.peak_bytes.values()) < 200 << 20
    check_bounds(ended)


@pytest.mark.parametrize(
    ("memory_bytes", "seconds", "ends"),
    [
        (256 << 20, 30.0, {"INTERNAL", "WORKER_DIED", "TIMEOUT"}),
        (2 << 30, 1.0, {"INTERNAL", "WORKER_DIED", "TIMEOUT", "parsed", "skipped"}),
    ],
    ids=["in little memory", "in little time"],
)
async def test_where_the_limit_is_raised_a_worker_keeps_to_its_memory_and_time(
    make_files: MakeFiles, memory_bytes: int, seconds: float, ends: set[str]
) -> None:
    """A line of 60 MB takes more than half a GB to parse, and so do a million functions.

    Each ends by the limit that it meets first, as `docs/files.md` says, and the file behind it in
    the same job is parsed. Red when a worker does not set its RLIMIT_AS: it held 0.8 GB of 256 MB
    when the pool ended it after 30 s.
    """
    top = make_files({"line.py": "x = '" + "a" * (60 << 20) + "'\n"})
    (top / "functions.py").write_text("def f():0\n" * 1_000_000)
    names = ("line.py", "functions.py")
    ended = await attack(top, names, seconds, memory_bytes, RAISED_MAX_FILE_BYTES)
    assert ended.outcomes.keys() == set(names)
    assert set(ended.outcomes.values()) <= ends
    check_bounds(ended, seconds=60.0, memory_bytes=memory_bytes)
