"""The health service: NOT_SERVING until told otherwise, with watches that end on a stop."""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_Status = health_pb2.HealthCheckResponse.ServingStatus

LIVENESS = "liveness"
"""A name that is SERVING while the process answers, whatever it waits for: a probe that restarts
what is not SERVING must ask for this one alone."""

VERSION_KEY = "lodestone-version"
"""In the trailing metadata of `Check`: the version that the process runs."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers for the server as a whole (the empty name) and for each of its services.

    The servicer that comes with grpcio holds a lock while it writes to a watcher and never ends a
    watch: one client that stops reading would hold up the stop of the server.
    """

    def __init__(self, service_names: Sequence[str]) -> None:
        self._names = frozenset(("", *service_names))
        self._state = _Status.NOT_SERVING
        self._stopping = False
        self._changed = asyncio.Event()
        self._version = importlib.metadata.version("lodestone")

    def tell(self, *, serving: bool) -> None:
        """Sets the state of all names; nothing changes once the server stops."""
        if not self._stopping:
            self._set(_Status.SERVING if serving else _Status.NOT_SERVING)

    def stop(self) -> None:
        """Says NOT_SERVING for good and ends all watches."""
        self._stopping = True
        self._set(_Status.NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - named by the contract
        """Answers with the state of one name, and the version beside it."""
        context.set_trailing_metadata(((VERSION_KEY, self._version),))
        if request.service == LIVENESS:
            return health_pb2.HealthCheckResponse(status=_Status.SERVING)
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "No service of this name.")
        return health_pb2.HealthCheckResponse(status=self._state)

    async def Watch(  # noqa: N802 - named by the contract
        self, request: Any, context: Any
    ) -> AsyncIterator[Any]:
        """Streams the state of one name, now and whenever it changes."""
        last = None
        while True:
            changed = self._changed
            state = self._state if request.service in self._names else _Status.SERVICE_UNKNOWN
            if state != last:
                yield health_pb2.HealthCheckResponse(status=state)
                last = state
            elif self._stopping:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is stopping.")
            else:
                await changed.wait()

    def _set(self, state: int) -> None:
        self._state = state
        # Each watch waits for the event that it saw before it read the state: none is missed.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
