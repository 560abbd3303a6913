"""The process that runs the model: `python -m services.embed.hosting.child SOCKET PARENT`.

It loads what its parent names, then answers batches from as many threads as the backend takes. It
ends with its parent, whatever ends that.
"""

from __future__ import annotations

import asyncio
import os
import queue
import resource
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from services.embed.backends.loading import has_gpu, load
from services.embed.backends.protocol import OutOfMemoryError
from services.embed.hosting import frames
from services.embed.hosting.frames import Kind
from services.runtime import log
from services.runtime.exits import ExitCode, StartError
from services.runtime.parents import end_with_parent

if TYPE_CHECKING:
    from services.embed.backends.protocol import Backend
    from services.embed.hosting.life import LoadRequest


def main(descriptor: int, parent: int) -> int:
    """Serves until the parent hangs up; returns the exit code."""
    if not end_with_parent(parent):
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides; it hangs up or kills
    channel = socket.socket(fileno=descriptor)
    asked = frames.receive(channel)
    if asked is None:
        return 0
    request: LoadRequest = frames.unpack_value(asked.payload)
    log.configure("embed", request.settings.log_level, request.settings.log_format)
    try:
        if request.memory_bytes:
            limit_memory(request)
        loaded = asyncio.run(load(request.source, request.settings))
    except StartError as error:
        refusal = (int(error.code), error.message)
        frames.send(channel, Kind.REFUSED, 0, frames.pack_value(refusal))
        return int(error.code)
    facts = (loaded.backend.info, loaded.encoder)
    frames.send(channel, Kind.READY, 0, frames.pack_value(facts))
    _Answering(channel, loaded.backend).run()
    return 0


def limit_memory(request: LoadRequest) -> None:
    """Bounds the address space of this process.

    Raises StartError where the model would run on a GPU: CUDA reserves more than any machine has of
    memory, and where it cannot, there is no GPU for it, and the model would run on the CPU.
    """
    if request.settings.backend in {"auto", "torch"} and has_gpu():
        raise StartError(
            ExitCode.USAGE,
            "LODESTONE_EMBED_ENGINE_MEMORY_BYTES bounds address space, of which CUDA needs more "
            "than there is memory. Leave it out on a GPU, and limit the container.",
        )
    resource.setrlimit(resource.RLIMIT_AS, (request.memory_bytes, request.memory_bytes))


class _Answering:
    """Threads that take batches from one queue and send what comes of them."""

    def __init__(self, channel: socket.socket, backend: Backend) -> None:
        self._channel = channel
        self._backend = backend
        self._batches: queue.SimpleQueue[frames.Frame] = queue.SimpleQueue()
        self._sending = threading.Lock()

    def run(self) -> None:
        """Returns when the parent hangs up."""
        for number in range(self._backend.info.concurrency):
            threading.Thread(target=self._answer, name=f"infer-{number}", daemon=True).start()
        while (frame := frames.receive(self._channel)) is not None:
            self._batches.put(frame)

    def _answer(self) -> None:
        while True:
            frame = self._batches.get()
            try:
                rows = self._backend.infer(*frames.unpack_batch(frame.payload))
                kind, payload = Kind.ROWS, frames.pack_rows(rows)
            except (OutOfMemoryError, MemoryError):
                kind, payload = Kind.FAILED, frames.pack_value(OutOfMemoryError.__name__)
            except BaseException as error:  # noqa: BLE001 - a model may raise anything
                kind, payload = Kind.FAILED, frames.pack_value(type(error).__name__)
            with self._sending:
                frames.send(self._channel, kind, frame.number, payload)


if __name__ == "__main__":
    code = main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    # Destructors of the engines' thread pools are no use to a process that is done.
    os._exit(code)
