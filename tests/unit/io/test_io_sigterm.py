"""SIGTERM at any time (F11): the process is gone within its grace and 2 s, and takes all along.

What it leaves half done is finished by the next start and by the repetition of the request. Red
with a stop that waits for calls as long as they take, with a second signal that does nothing, and
without a journal on the disk.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest
from blake3 import blake3

from lodestone.io.v1 import (
    parse_service_pb2,
    parse_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
    watch_service_pb2,
    watch_service_pb2_grpc,
)
from services.runtime.exits import ExitCode
from tests.unit.io.attacks import BOMBS
from tests.unit.io.service_process import (
    Service,
    answer_of,
    children_of,
    edits_of,
    new_files,
    running,
)
from tests.unit.io.writing import eventually, temporary_files

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.unit.io.harness import MakeFiles

pytestmark = pytest.mark.slow

TREE = tree_pb2.Tree(root="roots/test")
STOP_SECONDS = 2.0
FILES = 200
LARGE_FILES, LARGE_BYTES = 300, 2 << 20
EMPTY_FILES = 4000
NAMES = [f"d{number % 7}/f{number}" for number in range(FILES)]


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def wait_for_end(service: Service, within_seconds: float) -> int:
    """Returns the exit code of a process that was told to stop, and sees that it took nobody along.

    Its children may take a moment longer: the kernel ends them when it ended.
    """
    process = service.process
    children: set[int] = set()
    until = time.monotonic() + within_seconds
    while process.poll() is None:
        with suppress(FileNotFoundError, ProcessLookupError):
            children.update(children_of(process.pid))
        assert time.monotonic() < until, "it does not end"
        await asyncio.sleep(0.005)
    await eventually(lambda: all(map(is_gone, children)))
    return int(process.returncode)


async def test_a_stop_at_any_time_of_the_start_ends_it(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the handlers are set once the service is ready: its socket stays behind.

    Before the interpreter sets its handlers the signal ends it by itself.
    """
    top = make_files({"a.py": "a = 1\n"})

    async def stop_when(name: str, comes: Callable[[Service, Path], bool]) -> int:
        folder = tmp_path / name
        folder.mkdir()
        service = Service(top, folder, drain_seconds=1)
        try:
            await eventually(lambda: comes(service, folder))
            service.process.send_signal(signal.SIGTERM)
            code = await wait_for_end(service, 1 + STOP_SECONDS)
        finally:
            service.process.kill()
            service.process.wait()
        assert not (folder / "s").exists()
        return code

    codes = await asyncio.gather(*(stop_when(*moment) for moment in MOMENTS.items()))
    told = dict(zip(MOMENTS, codes, strict=True))
    assert {told.pop("at once"), told.pop("soon")} <= {ExitCode.OK, -signal.SIGTERM}
    assert told == dict.fromkeys(told, ExitCode.OK)


def has_used(service: Service, seconds: float) -> bool:
    """Tells whether a process has used so much of the processor."""
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") >= seconds


MOMENTS: dict[str, Callable[[Service, Path], bool]] = {
    "at once": lambda *_: True,
    "soon": lambda service, _: has_used(service, 0.2),
    "listens": lambda _, folder: (folder / "s").exists(),
    "worker": lambda service, _: bool(children_of(service.process.pid)),
}
"""What a start comes by."""


class Callers:
    """Calls of every kind on one service, none of which ends soon."""

    def __init__(self, service: Service, edits: Any) -> None:
        self._channel = grpc.aio.insecure_channel(service.address)
        self._edits = edits
        self._tasks: list[asyncio.Task[Any]] = []
        self._streams: list[Any] = []

    async def __aenter__(self) -> Self:
        read: Any = snippet_service_pb2_grpc.SnippetServiceStub(self._channel)
        parse: Any = parse_service_pb2_grpc.ParseServiceStub(self._channel)
        scan: Any = scan_service_pb2_grpc.ScanServiceStub(self._channel)
        watch: Any = watch_service_pb2_grpc.WatchServiceStub(self._channel)
        watching = watch.WatchTree(
            watch_service_pb2.WatchTreeRequest(tree=TREE), wait_for_ready=True
        )
        await watching.read()
        scanning = scan.ScanTree(scan_service_pb2.ScanTreeRequest(tree=TREE))
        await scanning.read()  # and no more: the service waits for its caller
        parsing = parse.ParseFiles(
            parse_service_pb2.ParseFilesRequest(
                tree=TREE, files=[parse_service_pb2.FileToParse(path="generics.java")]
            )
        )
        self._streams = [watching, scanning, parsing]
        self._start(self._read_on(read))
        self._start(parsing.read())
        self._start(answer_of(self._edits, edits_of(NAMES)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for call in (*self._streams, *self._tasks):
            call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    async def _read_on(self, stub: Any) -> None:
        digest = blake3(bytes(LARGE_BYTES)).digest()
        refs = [
            snippet_service_pb2.SnippetRef(path=f"large{n}", end_byte=1, file_digest=digest)
            for n in range(LARGE_FILES)
        ]
        while True:
            await stub.ReadSnippets(snippet_service_pb2.ReadSnippetsRequest(tree=TREE, refs=refs))


@pytest.fixture
def top(make_files: MakeFiles) -> Path:
    """A tree in which every kind of call takes its time."""
    top = make_files({"generics.java": BOMBS["generics.java"], **dict.fromkeys(NAMES, "old")})
    for number in range(LARGE_FILES):
        with (top / f"large{number}").open("wb") as file:
            file.truncate(LARGE_BYTES)
    (top / "empty").mkdir()
    for number in range(EMPTY_FILES):  # in long names, so that an answer fills the stream
        os.close(os.open(top / "empty" / f"{number:0200}.py", os.O_CREAT | os.O_WRONLY, 0o644))
    return top


@pytest.mark.parametrize(
    ("drain_seconds", "signals", "code"),
    [(2.0, 1, ExitCode.OK), (0.1, 1, ExitCode.OK), (60.0, 2, ExitCode.INTERRUPTED)],
    ids=["the write ends within the grace", "nothing does", "a second signal"],
)
async def test_a_stop_with_calls_of_every_kind_in_flight_ends_in_time_and_loses_no_write(
    top: Path, tmp_path: Path, drain_seconds: float, signals: int, code: ExitCode
) -> None:
    options = {
        "drain_seconds": drain_seconds, "parse_timeout_seconds": 300, "parse_workers": 1,
    }  # fmt: skip
    async with running(top, tmp_path, **options) as (service, edits):
        async with Callers(service, edits):
            await eventually(lambda: (top / NAMES[FILES // 8]).read_text() == "new")
            for _ in range(signals):
                service.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.05 if signals > 1 else 0)
            grace = drain_seconds if signals == 1 else 0.0
            assert await wait_for_end(service, grace + STOP_SECONDS) == code
        if code is ExitCode.OK:
            assert not temporary_files(top)
    async with running(top, tmp_path) as (_, edits):
        answer = await answer_of(edits, edits_of(NAMES))
        await eventually(lambda: not temporary_files(top))
    assert {r.edited.digest for r in answer.results} == {blake3(b"new").digest()}
    assert new_files(top, NAMES) == FILES
