"""Worker processes that parse, and what happens when one of them dies or hangs.

A file that takes too long fails with TIMEOUT and its worker is replaced. A file on which a worker
dies is tried once more in a fresh one, as a worker may die of something else (the out-of-memory
killer takes whom it likes); if that dies too, the file fails with WORKER_DIED. The files behind it
in the job go on in the next worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from services.io import convert
from services.io.errors import ParseTimeoutError, WorkerDiedError, WorkerStartError
from services.io.parser.worker import DONE, HEADER, POSITION, READY, RESULT, root_fields
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from services.io.model import FileToParse, Root
    from services.io.parser.file import ParseLimits

JOB_FILES = 16
START_TIMEOUT_SECONDS = 60.0
MAX_TRIES = 2
CPU_GRACE_SECONDS = 1.0
"""How much longer than a file may take a worker may use the processor for it, if nobody ends it."""
DEATH_SECONDS = 1.0
"""Longest time between a worker's last word and its end."""

_LEAVE_FRAME = POSITION.pack(0)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How many workers there are and what they may use."""

    count: int
    timeout_seconds: float
    memory_bytes: int
    nice: int = 0


@dataclass(frozen=True, slots=True)
class ParseJob:
    """Files of one tree; `roots` begins with the tree's own."""

    roots: tuple[Root, ...]
    directory: str
    limits: ParseLimits
    files: tuple[FileToParse, ...]


@dataclass(slots=True)
class _Call:
    """One caller: what it is waiting for."""

    answers: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False


@dataclass(slots=True)
class _Task:
    call: _Call
    job: ParseJob
    files: deque[FileToParse]
    tries: int = 0

    def fail(self, error: Exception) -> None:
        """Answers the first file with an error."""
        file = self.files.popleft()
        self.tries = 0
        self.answer(convert.failed_message(file.index, error).SerializeToString())

    def answer(self, answer: bytes) -> None:
        """Hands an answer to the caller."""
        self.call.answers.put_nowait(answer)


class WorkerPool:
    """Some worker processes behind one queue; start it, then close it."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._tasks: asyncio.Queue[_Task] = asyncio.Queue()
        self._slots: list[_Slot] = []
        self._owners: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the workers in the background; jobs may come at once."""
        for number in range(self._options.count):
            slot = _Slot(self._options)
            self._slots.append(slot)
            owner = asyncio.create_task(self._serve(slot), name=f"parse-worker-{number}")
            self._owners.append(owner)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        return [slot.pid for slot in self._slots if slot.pid]

    async def parse(self, job: ParseJob) -> AsyncIterator[bytes]:
        """Yields a serialized ParseFilesResponse for each file, as they are ready.

        Few jobs of a call wait at once, so that a slow caller fills no memory and holds no worker.
        """
        call = _Call()
        waiting = deque(
            job.files[start : start + JOB_FILES] for start in range(0, len(job.files), JOB_FILES)
        )
        in_flight = 0
        try:
            while waiting or in_flight:
                while waiting and in_flight <= self._options.count:
                    self._tasks.put_nowait(_Task(call, job, deque(waiting.popleft())))
                    in_flight += 1
                answer = await call.answers.get()
                if answer is None:
                    in_flight -= 1
                else:
                    yield answer
        finally:
            call.is_cancelled = True

    async def close(self) -> None:
        """Ends the workers at once; what they parse is lost."""
        for owner in self._owners:
            owner.cancel()
        await asyncio.gather(*self._owners, return_exceptions=True)
        for slot in self._slots:
            await slot.stop()

    async def _serve(self, slot: _Slot) -> None:
        await slot.warm()
        while True:
            task = await self._tasks.get()
            try:
                while task.files and not task.call.is_cancelled:
                    await self._run(slot, task)
            except Exception:  # noqa: BLE001 - a bug; callers wait, so each file is told of it
                get_logger().exception("parse_slot_failed")
                await slot.stop()
                while task.files:
                    task.fail(WorkerDiedError.at(task.files[0].path, "The parser failed."))
            finally:
                task.call.answers.put_nowait(None)

    async def _run(self, slot: _Slot, task: _Task) -> None:
        """Gives a task to a worker; returns with fewer files left in it, or after a failed try."""
        file = task.files[0]
        try:
            await slot.run(task)
        except WorkerStartError as error:
            task.fail(error)
        except TimeoutError:
            await slot.stop()
            self._fail_as_too_slow(task)
        except (EOFError, OSError):
            code = await slot.stop(death_seconds=DEATH_SECONDS)
            if not task.files:
                return
            if code == -signal.SIGXCPU:
                self._fail_as_too_slow(task)
                return
            task.tries = task.tries + 1 if task.files[0] is file else 1
            get_logger().warning("parse_worker_died", tries=task.tries)
            if task.tries >= MAX_TRIES:
                task.fail(WorkerDiedError.at(task.files[0].path, "The parser died on this file."))

    def _fail_as_too_slow(self, task: _Task) -> None:
        get_logger().warning("parse_timed_out", seconds=self._options.timeout_seconds)
        task.fail(ParseTimeoutError.at(task.files[0].path, "Parsing takes longer than it may."))


class _Slot:
    """A place for one worker process, which is started when there is none."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id of the worker, 0 when there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    async def warm(self) -> None:
        """Starts the worker ahead of its first job; that job will tell if it does not start."""
        try:
            await self._started()
        except WorkerStartError:
            get_logger().warning("parse_worker_did_not_start")

    async def run(self, task: _Task) -> None:
        """Parses the files of a task; each that is answered leaves it.

        When the caller is gone the file that is begun is finished, or the next one, and no more.

        Raises:
            WorkerStartError: no worker starts.
            TimeoutError: the first file left takes too long, or the worker to take the job.
            EOFError, OSError: the worker died on the first file left.
        """
        process = await self._started()
        assert process.stdin is not None
        async with asyncio.timeout(self._options.timeout_seconds):
            process.stdin.write(_job_frame(task))
            await process.stdin.drain()
        is_left = False
        while True:
            async with asyncio.timeout(self._options.timeout_seconds):
                kind, answer = await _read_frame(process)
            if kind == DONE:
                return
            assert kind == RESULT
            file = task.files.popleft()
            assert POSITION.unpack_from(answer)[0] == file.index
            task.tries = 0
            task.answer(answer[POSITION.size :])
            if task.call.is_cancelled and not is_left:
                process.stdin.write(_LEAVE_FRAME)
                is_left = True

    async def stop(self, death_seconds: float = 0.0) -> int | None:
        """Kills the worker, if it does not end by itself, and waits until it is gone.

        Returns its exit status as asyncio tells it, None when there was no worker.

        To kill one that just died takes its exit status from asyncio, which then complains.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(death_seconds):
                await process.wait()
        if process.returncode is None:
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        return await process.wait()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self.stop()
        options = {
            "parent": os.getpid(),
            "memory_bytes": self._options.memory_bytes,
            "cpu_seconds": self._options.timeout_seconds + CPU_GRACE_SECONDS,
            "nice": self._options.nice,
        }
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.io.parser.worker",
                json.dumps(options),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl+C is for the service, which ends its workers
            )
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                kind, _ = await _read_frame(self._process)
            assert kind == READY
        except (OSError, EOFError, TimeoutError):
            await self.stop()
            raise WorkerStartError(
                "No parser process starts; the log of the io service tells why."
            ) from None
        return self._process


async def _read_frame(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    kind, size = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
    return kind, await process.stdout.readexactly(size)


def _job_frame(task: _Task) -> bytes:
    job = task.job
    # One file alone after a death: whatever comes behind it is not to suffer twice.
    files: Sequence[FileToParse] = [task.files[0]] if task.tries else list(task.files)
    payload = json.dumps(
        {
            "roots": [root_fields(root) for root in job.roots],
            "directory": job.directory,
            "limits": asdict(job.limits),
            "files": [(file.index, file.path, file.known_digest.hex()) for file in files],
        }
    ).encode()
    return POSITION.pack(len(payload)) + payload
