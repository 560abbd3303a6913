"""A proxy between two processes, over Unix sockets or TCP, that harms what passes; any protocol."""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CHUNK_BYTES = 1 << 16
_SLOW_BYTES_PER_SECOND = 1024
_SLOW_STEPS_PER_SECOND = 20


_LOOPBACK = "127.0.0.1"

Place = Path | int
"""A Unix socket, or a port of loopback."""


class Harm(StrEnum):
    """What happens to bytes on their way."""

    NONE = "none"
    BLACK_HOLE = "black_hole"
    """Connections stay open and new ones are taken, but nothing comes through, either way."""

    ONE_WAY = "one_way"
    """What the client sends arrives; no answer does."""

    RESET = "reset"
    """Connections are cut, and new ones too."""

    LATENCY = "latency"
    """Everything arrives later."""

    SLOW = "slow"
    """One kB a second."""


class FaultProxy:
    """Listens at one place and passes all on to another; `harm` may change at any time.

    What was held up in a black hole is passed on when the harm ends, as TCP would send it again.
    """

    def __init__(self, listen: Place, target: Place) -> None:
        self._listen = listen
        self._target = target
        self.latency_seconds = 2.0
        self._harm = Harm.NONE
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._cut_after = b""
        self._cut = asyncio.Event()

    @property
    def harm(self) -> Harm:
        """What happens to bytes now."""
        return self._harm

    @harm.setter
    def harm(self, harm: Harm) -> None:
        self._harm = harm
        self._changed.set()
        self._changed = asyncio.Event()
        if harm is Harm.RESET:
            for writer in self._writers:
                writer.transport.abort()

    async def cut_after(self, data: bytes) -> None:
        """Returns once a client sent `data`, which was passed on, and was cut from its answer."""
        self._cut.clear()
        self._cut_after = data
        await self._cut.wait()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FaultProxy]:
        """Serves while the body runs."""
        self._server = await self._start()
        try:
            yield self
        finally:
            self._server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            if isinstance(self._listen, Path):
                self._listen.unlink(missing_ok=True)

    async def _start(self) -> asyncio.Server:
        if isinstance(self._listen, int):
            return await asyncio.start_server(self._accept, _LOOPBACK, self._listen)
        server = await asyncio.start_unix_server(self._accept, str(self._listen))
        self._listen.chmod(0o777)
        return server

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, int):
            return await asyncio.open_connection(_LOOPBACK, self._target)
        return await asyncio.open_unix_connection(str(self._target))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        try:
            if self._harm is Harm.RESET:
                return
            await self._pass(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._connections.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self._harm is Harm.BLACK_HOLE:  # the other side does not hear of the connection
            await self._changed.wait()
        there, back = await self._reach()
        self._writers.add(back)
        up = asyncio.create_task(self._pump(reader, back, up=True))
        down = asyncio.create_task(self._pump(there, writer, up=False))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:  # first what may not be missed: whoever stops serving cancels this wait
            back.transport.abort()
            self._writers.discard(back)
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._hold_up(up=up)
            if up and self._cut_after and self._cut_after in data:
                self._cut_after = b""
                writer.write(data)
                await writer.drain()
                self._cut.set()
                return
            await self._write(writer, data)

    async def _hold_up(self, *, up: bool) -> None:
        while True:
            match self._harm:
                case Harm.BLACK_HOLE:
                    await self._changed.wait()
                case Harm.ONE_WAY if not up:
                    await self._changed.wait()
                case Harm.LATENCY:
                    await asyncio.sleep(self.latency_seconds)
                    return
                case Harm.NONE | Harm.ONE_WAY | Harm.RESET | Harm.SLOW:
                    return
                case _:
                    assert_never(self._harm)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        step = _SLOW_BYTES_PER_SECOND // _SLOW_STEPS_PER_SECOND
        while self._harm is Harm.SLOW and data:
            part, data = data[:step], data[step:]
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(1 / _SLOW_STEPS_PER_SECOND)
        writer.write(data)
        await writer.drain()
