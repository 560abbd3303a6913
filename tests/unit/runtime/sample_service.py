"""A small service on the real contracts, for tests of what every service shares.

What a call does is chosen by the request: the model's name for `Embed`, the text for `EmbedStream`,
the folder for `ScanTree`. `python -m tests.unit.runtime.sample_service` runs it as a process that
tells on standard output how far it is.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from pydantic_settings import SettingsConfigDict

from lodestone.embed.v1 import embed_service_pb2 as embed_pb2
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.io.v1 import scan_service_pb2 as scan_pb2
from lodestone.io.v1 import scan_service_pb2_grpc as scan_grpc
from lodestone.io.v1 import watch_service_pb2 as watch_pb2
from lodestone.io.v1 import watch_service_pb2_grpc as watch_grpc
from services.runtime.errors import (
    DependencyUnavailableError,
    NotFoundError,
    OverloadedError,
    ShuttingDownError,
)
from services.runtime.exits import ExitCode, StartError
from services.runtime.server import main_guard, run_service
from services.runtime.settings import ServiceSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "def secret(): pass"
"""Stands for the content of a file: it must not come out in any error, log or span."""


class AwayEverywhereError(DependencyUnavailableError):
    """What every replica needs is away."""

    everywhere = True


class SampleSettings(ServiceSettings):
    """Settings in the section of embed."""

    model_config = SettingsConfigDict(env_prefix="LODESTONE_EMBED_", frozen=True, extra="ignore")


class SampleApp:
    """An app whose start, drain and close do what a test asks."""

    name = "embed"
    service_names = (
        "lodestone.embed.v1.EmbedService",
        "lodestone.io.v1.ScanService",
        "lodestone.io.v1.WatchService",
    )

    def __init__(self) -> None:
        self.events: list[str] = []
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.start_error: Exception | None = None
        self.drain_error: Exception | None = None
        self.may_drain = asyncio.Event()
        self.may_drain.set()
        self.may_answer = asyncio.Event()
        self.draining = asyncio.Event()
        self.onward: grpc.aio.Channel | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers; `ScanService.CheckFiles` is left unbuilt."""
        embed_grpc.add_EmbedServiceServicer_to_server(SampleEmbed(self), server)
        scan_grpc.add_ScanServiceServicer_to_server(SampleScan(self), server)
        watch_grpc.add_WatchServiceServicer_to_server(SampleWatch(self), server)

    async def start(self) -> None:
        """Starts when the test lets it."""
        self.note("start")
        await self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error
        self.note("started")

    async def drain(self) -> None:
        """Ends the watches."""
        self.note("drain")
        self.draining.set()
        await self.may_drain.wait()
        if self.drain_error is not None:
            raise self.drain_error

    async def close(self) -> None:
        """Notes that it was asked."""
        self.note("close")

    def note(self, event: str) -> None:
        """Keeps an event for the test to look at."""
        self.events.append(event)


class SampleEmbed(embed_grpc.EmbedServiceServicer):
    """Answers, fails or waits as the request says."""

    def __init__(self, app: SampleApp) -> None:
        self._app = app

    async def Embed(self, request: Any, context: Any) -> embed_pb2.EmbedResponse:  # noqa: N802
        """Does what the model's name says."""
        self._app.note("called")
        match request.model.removeprefix("models/"):
            case "wait":
                await self._wait()
            case "flaky" | "dropped" | "away" as name:
                await self._fail_at_first(name, context)
            case "onward":
                assert self._app.onward is not None
                inner = embed_pb2.EmbedRequest(
                    model="models/echo", options=request.options, texts=request.texts
                )
                return await embed_grpc.EmbedServiceStub(self._app.onward).Embed(inner, timeout=5)
            case "abort":
                await context.abort(grpc.StatusCode.ABORTED, "Aborted by hand.")
            case "code":
                context.set_code(grpc.StatusCode.OUT_OF_RANGE)
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(_fail_with_missing())
            case name if name != "echo":
                raise _error(name)
        results = [_result(text) for text in request.texts]
        return embed_pb2.EmbedResponse(results=results, model_fingerprint="f")

    async def EmbedStream(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        """Answers each text; `crash` raises."""
        try:
            async for request in request_iterator:
                if request.text == "crash":
                    raise _error("crash")
                yield embed_pb2.EmbedStreamResponse(id=request.id, result=_result(request.text))
        finally:
            self._app.note("embed stream closed")

    async def _fail_at_first(self, name: str, context: Any) -> None:
        calls = self._app.events.count("called")
        if name == "dropped" and calls == 1:
            await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        if name == "flaky" and calls < 3:
            raise DependencyUnavailableError("Not yet.")
        if name == "away" and calls < 5:
            raise AwayEverywhereError("Not yet.", retry_after_seconds=0.2)

    async def _wait(self) -> None:
        self._app.note("inside")
        try:
            await self._app.may_answer.wait()
        except asyncio.CancelledError:
            self._app.note("cancelled")
            raise


class SampleScan(scan_grpc.ScanServiceServicer):
    """Streams two messages, then does as the folder says."""

    def __init__(self, app: SampleApp) -> None:
        self._app = app

    async def ScanTree(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[scan_pb2.ScanTreeResponse]:
        """Ends, fails, aborts or goes on for ever after two messages."""
        try:
            for name in ("a.py", "b.py"):
                yield scan_pb2.ScanTreeResponse(files=[scan_pb2.ScannedFile(path=name)])
            match request.tree.directory:
                case "abort":
                    await context.abort(grpc.StatusCode.ABORTED, "Aborted by hand.")
                case "quiet":
                    await asyncio.Event().wait()
                case "endless":
                    while True:
                        yield scan_pb2.ScanTreeResponse(files=[scan_pb2.ScannedFile(path="c.py")])
                case "":
                    return
                case name:
                    raise _error(name)
        finally:
            await asyncio.sleep(0.01)  # as long as giving something back may take
            self._app.note("scan closed")


class SampleWatch(watch_grpc.WatchServiceServicer):
    """Is open until the service drains."""

    def __init__(self, app: SampleApp) -> None:
        self._app = app

    async def WatchTree(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[watch_pb2.WatchTreeResponse]:
        """Sends one state, then ends UNAVAILABLE on drain."""
        yield watch_pb2.WatchTreeResponse(resume_token="1")
        await self._app.draining.wait()
        raise ShuttingDownError("The watch ends.", retry_after_seconds=0.5)


def _result(text: str) -> embed_pb2.EmbedResult:
    return embed_pb2.EmbedResult(embedding=embed_pb2.Embedding(vector=text.encode()))


def _error(name: str) -> Exception:
    match name:
        case "missing":
            return NotFoundError("No such model.", metadata={"resource": "models/missing"})
        case "busy":
            return OverloadedError("Later.", metadata={"limit": "1"}, retry_after_seconds=1.5)
        case "foreign":
            return NotFoundError("No caf\udce9.", metadata={"path": "caf\udce9.py"})
        case "long":
            wide = {f"key{number}": "\u20ac" * 2000 for number in range(50)}
            return NotFoundError("\u20ac" * 20_000, metadata=wide)
        case _:
            return RuntimeError(SECRET)


async def _fail_with_missing() -> NoReturn:
    raise _error("missing")


class _ToldApp(SampleApp):
    """Tells its events on standard output, for a test that runs it as a process."""

    def note(self, event: str) -> None:
        super().note(event)
        sys.stdout.write(f"{event}\n")
        sys.stdout.flush()


def main() -> int:
    """Runs the service as a process; arguments say what its app does."""
    settings = load_settings(SampleSettings)
    app = _ToldApp()
    if "wait-in-start" in sys.argv:
        app.may_start.clear()
    if "fail-in-start" in sys.argv:
        app.start_error = StartError(ExitCode.MODEL, "The model does not load.")
    if "hang-in-drain" in sys.argv:
        app.may_drain.clear()
    if "fail-in-drain" in sys.argv:
        app.drain_error = RuntimeError(SECRET)
    return run_service(settings, app)


if __name__ == "__main__":
    sys.exit(main_guard(main, SampleApp.name))
