"""Workers that die or hang take nobody with them."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lodestone.io.v1 import parse_service_pb2
from services.io.model import FileToParse, Root, SymlinkPolicy
from services.io.parser.file import ParseLimits
from services.io.parser.pool import ParseJob, WorkerOptions, WorkerPool
from services.runtime.status import read_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.io.harness import MakeFiles

pytestmark = pytest.mark.slow

# Takes the parser about a second: long enough to be met in the middle.
HEAVY = "x = [" + "f(a, b[c], {d: e}), " * 80_000 + "]\n"


@asynccontextmanager
async def running(**options: float) -> AsyncIterator[WorkerPool]:
    settings = {"count": 1, "timeout_seconds": 60.0, "memory_bytes": 2 << 30, **options}
    pool = WorkerPool(WorkerOptions(**settings))  # type: ignore[arg-type]
    pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def job(top: Path, *paths: str) -> ParseJob:
    root = Root("test", str(top), SymlinkPolicy.WITHIN_ROOT)
    files = tuple(FileToParse(index, path) for index, path in enumerate(paths))
    return ParseJob((root,), "", ParseLimits(8 << 20, 100_000, 256), files)


async def results(pool: WorkerPool, work: ParseJob) -> dict[str, str]:
    """Returns how each file ended: its outcome, or the reason of its error."""
    found: dict[str, str] = {}
    async for answer in pool.parse(work):
        index, outcome = outcome_of(answer)
        found[work.files[index].path] = outcome
    return found


def outcome_of(answer: bytes) -> tuple[int, str]:
    """Returns a file's position and how it ended."""
    message = parse_service_pb2.ParseFilesResponse.FromString(answer)
    outcome = message.WhichOneof("outcome") or ""
    reason = read_status(message.error).reason.removeprefix("ERROR_REASON_")
    return message.index, reason if outcome == "error" else outcome


async def worker_pid(pool: WorkerPool, not_pid: int = 0) -> int:
    async with asyncio.timeout(30):
        while not (pids := [pid for pid in pool.pids if pid != not_pid]):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)
    return pids[0]


def busy_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_many_files_end_in_any_order_each_once(make_files: MakeFiles) -> None:
    names = [f"f{i}.py" for i in range(100)]
    top = make_files({name: f"def {name[:-3]}(): return 1\n" for name in names})
    async with running(count=2) as pool:
        assert await results(pool, job(top, *names)) == dict.fromkeys(names, "parsed")


async def test_a_worker_that_is_killed_once_costs_nothing(make_files: MakeFiles) -> None:
    top = make_files({"a.py": "a = 1\n", "heavy.py": HEAVY, "b.py": "b = 1\n"})
    async with running() as pool:
        assert await results(pool, job(top, "a.py")) == {"a.py": "parsed"}
        parsing = asyncio.create_task(results(pool, job(top, "a.py", "heavy.py", "b.py")))
        pid = await worker_pid(pool)
        await kill_when_busy(pid)
        assert await parsing == dict.fromkeys(("a.py", "heavy.py", "b.py"), "parsed")
        assert await worker_pid(pool) != pid


async def test_a_file_on_which_workers_die_fails_alone(make_files: MakeFiles) -> None:
    top = make_files({"a.py": "a = 1\n", "heavy.py": HEAVY, "b.py": "b = 1\n"})
    async with running() as pool:
        assert await results(pool, job(top, "a.py")) == {"a.py": "parsed"}
        first = await worker_pid(pool)
        start_seconds = busy_seconds(first)
        parsing = asyncio.create_task(results(pool, job(top, "a.py", "heavy.py", "b.py")))
        await kill_when_busy(first)
        # Not before it parses: a worker that dies while it starts tells nothing of the file.
        await kill_when_busy(await worker_pid(pool, first), 1.5 * start_seconds + 0.2)
        assert await parsing == {"a.py": "parsed", "heavy.py": "WORKER_DIED", "b.py": "parsed"}


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def is_dead(pid: int) -> bool:
    """Tells whether a process is gone, or waits for its parent to be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def kill_when_busy(pid: int, seconds: float = 0.2) -> None:
    """Kills a worker once it has used so much more processor time than now."""
    before = busy_seconds(pid)
    async with asyncio.timeout(30):
        while busy_seconds(pid) < before + seconds:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)


async def test_a_file_that_takes_too_long_fails_alone(make_files: MakeFiles) -> None:
    top = make_files({"a.py": "a = 1\n", "heavy.py": HEAVY * 4, "b.py": "b = 1\n"})
    async with running(timeout_seconds=0.7) as pool:
        found = await results(pool, job(top, "a.py", "heavy.py", "b.py"))
    assert found == {"a.py": "parsed", "heavy.py": "TIMEOUT", "b.py": "parsed"}


async def test_a_file_that_takes_too_long_ends_while_its_parent_looks_away(
    make_files: MakeFiles,
) -> None:
    """Red without a limit that the kernel holds: nobody ends the worker while the parent is busy.

    The file takes some 4 s of the processor and may take 2 s.
    """
    top = make_files({"a.py": "a = 1\n", "heavy.py": HEAVY * 4, "b.py": "b = 1\n"})
    async with running(timeout_seconds=1.0) as pool:
        assert await results(pool, job(top, "b.py")) == {"b.py": "parsed"}
        pid = await worker_pid(pool)
        answers = pool.parse(job(top, "a.py", "heavy.py", "b.py"))
        await anext(answers)  # of a.py: the worker has the next one
        until = time.monotonic() + 60
        while not is_dead(pid):  # the loop stands still: this process is busy with other things
            assert time.monotonic() < until, "the worker goes on and on"
            time.sleep(0.01)  # noqa: ASYNC251 - on purpose
        told = [outcome_of(answer) async for answer in answers]
    assert told == [(1, "TIMEOUT"), (2, "parsed")]


async def test_the_limit_of_time_is_moved_on_with_each_file(make_files: MakeFiles) -> None:
    """Red when a worker's limit is that of its whole life: any file could be its last."""
    top = make_files({"heavy.py": HEAVY, "a.py": "a = 1\n"})
    async with running(timeout_seconds=30.0) as pool:
        pid = await worker_pid(pool)
        found = await results(pool, job(top, "heavy.py", "a.py"))
        assert found == {"heavy.py": "parsed", "a.py": "parsed"}
        limit, _ = resource.prlimit(pid, resource.RLIMIT_CPU)
        assert 30.5 < limit - busy_seconds(pid) < 32.5


async def test_a_file_that_takes_too_much_memory_fails_alone(make_files: MakeFiles) -> None:
    top = make_files({"a.py": "a = 1\n", "heavy.py": HEAVY * 4, "b.py": "b = 1\n"})
    async with running(memory_bytes=400 << 20) as pool:
        found = await results(pool, job(top, "a.py", "heavy.py", "b.py"))
    assert found.pop("heavy.py") in {"WORKER_DIED", "INTERNAL"}
    assert found == {"a.py": "parsed", "b.py": "parsed"}


async def test_a_worker_that_cannot_start_is_told_for_each_file(make_files: MakeFiles) -> None:
    top = make_files({"a.py": "a = 1\n"})
    async with running(memory_bytes=16 << 20) as pool:
        assert await results(pool, job(top, "a.py")) == {"a.py": "DEPENDENCY_UNAVAILABLE"}


async def test_a_caller_that_leaves_frees_the_worker(make_files: MakeFiles) -> None:
    names = [f"f{i}.py" for i in range(200)]
    top = make_files(dict.fromkeys(names, "x = 1\n"))
    async with running() as pool:
        leaving = pool.parse(job(top, *names))
        await anext(leaving)
        await leaving.aclose()  # type: ignore[attr-defined]
        assert await results(pool, job(top, "f1.py")) == {"f1.py": "parsed"}


@pytest.mark.parametrize("answers", [0, 1])
async def test_what_a_caller_left_keeps_no_other_waiting(
    make_files: MakeFiles, answers: int
) -> None:
    """Red where a worker goes through all files of the job that it has in hand.

    It is left before its first file is done, or after that.
    """
    heavy = [f"f{number}.py" for number in range(8)]
    top = make_files(dict.fromkeys(heavy, HEAVY) | {"a.py": "x = 1\n"})
    async with running() as pool:
        pid = await worker_pid(pool)
        await results(pool, job(top, "a.py"))  # it has started
        began = busy_seconds(pid)
        await results(pool, job(top, heavy[0]))
        of_one = busy_seconds(pid) - began
        leaving = asyncio.create_task(first_of(pool, job(top, *heavy), answers))
        while busy_seconds(pid) < began + 1.3 * of_one:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)
        if not answers:
            leaving.cancel()
        await asyncio.wait((leaving,))
        assert await results(pool, job(top, "a.py")) == {"a.py": "parsed"}
        assert await worker_pid(pool) == pid
        assert busy_seconds(pid) - began < (3.7 + answers) * of_one
        # What was left behind is not taken for the next job's.
        assert await results(pool, job(top, "a.py", heavy[0])) == {
            "a.py": "parsed", heavy[0]: "parsed",
        }  # fmt: skip


async def first_of(pool: WorkerPool, work: ParseJob, count: int) -> None:
    """Leaves a job after some answers; with none it waits for the first one."""
    answers = pool.parse(work)
    try:
        for _ in range(max(1, count)):
            await anext(answers)
    finally:
        await answers.aclose()  # type: ignore[attr-defined]


async def test_a_closed_pool_leaves_no_process(make_files: MakeFiles) -> None:
    async with running(count=2) as pool:
        await results(pool, job(make_files({"a.py": "a = 1\n"}), "a.py"))
        pids = pool.pids
    assert pids
    assert not [pid for pid in pids if is_alive(pid)]


async def test_binary_large_and_hostile_files_have_their_outcomes(make_files: MakeFiles) -> None:
    top = make_files({
        "nul.py": b"a\0b", "latin.py": b"\xe9", "wide.py": "x = 1".encode("utf-16"),
        "big.py": "x" * (9 << 20), "empty.py": "", "ok.py": "x = 1\n",
    })  # fmt: skip
    (top / "dir.py").mkdir()
    async with running() as pool:
        found = await results(pool, job(top, *sorted(p.name for p in top.iterdir()), "../x.py"))
    assert found == {
        "nul.py": "skipped", "latin.py": "skipped", "wide.py": "skipped", "big.py": "skipped",
        "empty.py": "parsed", "ok.py": "parsed", "dir.py": "FILE_NOT_REGULAR",
        "../x.py": "PATH_OUTSIDE_TREE",
    }  # fmt: skip
