"""Records the work of a forward once, so that the host can start all of it by one call."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_WARM_UPS = 3
"""Runs before a capture: libraries choose their kernels and take their workspaces in the first."""
_CAPTURING = threading.Lock()
"""A process captures one graph at a time."""


class Recorder(Protocol):
    """Records functions that read and write tensors which stay where they are.

    Recordings of one recorder share their memory: they are replayed one after another.
    """

    @property
    def held_bytes(self) -> int:
        """Memory of the device that the recordings hold."""
        ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Returns what does the work of `run` again, on what the tensors then hold.

        Raises RuntimeError where the work cannot be recorded.
        """
        ...

    def close(self) -> None:
        """Gives up all recordings and their memory; none is replayed any more."""
        ...


class DirectRecorder:
    """Records nothing: a replay calls the function. For any device."""

    held_bytes = 0

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Returns the function, which has run once."""
        run()
        return run

    def close(self) -> None:
        """Does nothing: nothing is held."""


class CudaRecorder:
    """Captures CUDA graphs on a stream beside the current one, with one pool of memory for all."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What the allocator took from the device for the graphs."""
        return self._held_bytes

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Returns the replay of a graph; it goes to the stream that is current then.

        Raises:
            RuntimeError: the capture failed, or there was no memory for it.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        # A capture that fails leaves its stream the current one; the outer block puts that right.
        with _CAPTURING, torch.cuda.stream(current):
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
            current.wait_stream(self._stream)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            # Other models of this process may go on: what they allocate is no part of this.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                run()
            self._held_bytes += torch.cuda.memory_reserved() - before
        self._graphs.append(graph)
        return graph.replay

    def close(self) -> None:
        """Gives up all graphs; their memory goes back to the device."""
        for graph in self._graphs:
            graph.reset()
        self._graphs.clear()
        self._held_bytes = 0
        torch.cuda.empty_cache()


def recorders_for(device: str) -> Callable[[], Recorder] | None:
    """Returns what makes recorders for a device; None where there is nothing to win.

    All capture on one stream, as libraries keep a workspace for each that they have seen.
    """
    if device != "cuda":
        return None
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return partial(CudaRecorder, stream)
