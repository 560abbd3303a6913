"""What io tells of changes of a tree, in the indexer's words."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from lodestone.io.v1 import tree_pb2, watch_service_pb2, watch_service_pb2_grpc
from services.indexer.errors import TreeUnavailableError
from services.indexer.remote import call_failure, raise_unavailable
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from services.indexer.model import Tree

_TYPE = watch_service_pb2.FileEvent.Type
_OLDEST_SECONDS = 600.0
"""No event is taken as older: io keeps none for longer, so its clock is another than ours."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """A change of a file."""

    kind: str
    """`created`, `modified`, `removed` or `renamed`."""
    paths: tuple[str, ...]
    """The path, and for a renamed file also the one before."""
    age_seconds: float
    """How long ago it was seen, by a clock that may be another machine's: within bounds."""


@dataclass(frozen=True, slots=True)
class WatchMessage:
    """What io told at once; no change and no rescan in a heartbeat."""

    changes: Sequence[FileChange]
    rescan: bool
    resume_token: str


class WatchClient:
    """Calls io's watch.

    Args:
        channel: of io.
        silence_seconds: time without a message, heartbeats too, after which io counts as gone.
    """

    def __init__(self, channel: grpc.aio.Channel, silence_seconds: float) -> None:
        self._stub = watch_service_pb2_grpc.WatchServiceStub(channel)
        self._silence_seconds = silence_seconds

    async def watch(self, tree: Tree, resume_token: str) -> AsyncGenerator[WatchMessage]:
        """Yields what io tells, without end; the first message says that the watch is in place.

        Raises:
            TreeUnavailableError: there is no such tree, or it may not be watched.
            DependencyUnavailableError: io does not answer, or ends the watch.
        """
        request = watch_service_pb2.WatchTreeRequest(
            tree=tree_pb2.Tree(root=tree.root, directory=tree.directory), resume_token=resume_token
        )
        call = self._stub.WatchTree(request)
        try:
            while True:
                async with asyncio.timeout(self._silence_seconds):
                    response = await call.read()
                if not isinstance(response, watch_service_pb2.WatchTreeResponse):
                    raise _gone("OK")  # the end of the stream
                yield _message(response)
        except TimeoutError:
            raise _gone("DEADLINE_EXCEEDED") from None
        except grpc.aio.AioRpcError as error:
            raise_unavailable(error, "io")
            failure = call_failure(error)
            raise TreeUnavailableError(f"The folder cannot be watched: {failure.message}") from None
        finally:
            call.cancel()


def _gone(code: str) -> DependencyUnavailableError:
    return DependencyUnavailableError(
        "The io service does not answer (a watch ended).",
        metadata={"dependency": "io", "code": code},
    )


def _message(response: watch_service_pb2.WatchTreeResponse) -> WatchMessage:
    now = time.time()
    changes = [
        FileChange(
            kind=_TYPE.Name(event.type).removeprefix("TYPE_").lower(),
            paths=(event.path, event.old_path) if event.old_path else (event.path,),
            age_seconds=min(
                max(now - event.event_time.ToNanoseconds() / 1e9, 0.0), _OLDEST_SECONDS
            ),
        )
        for event in response.events
        if event.type != _TYPE.TYPE_RESCAN
    ]
    rescan = any(event.type == _TYPE.TYPE_RESCAN for event in response.events)
    return WatchMessage(changes, rescan, response.resume_token)
