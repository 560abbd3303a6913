"""A channel that is made anew when the files of its credentials change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import grpc

from services.runtime.exits import StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.runtime.file_watch import FileWatch

_GRACE_SECONDS = 600.0
"""Time that calls may go on over the channel before: its credentials were good when they began."""


class ReloadingChannel(grpc.aio.Channel):
    """Hands each call to a channel whose credentials are those that the files hold now.

    gRPC's credentials for channels are fixed once made: with a short-lived certificate, a process
    could not connect again after the other side was restarted.
    """

    def __init__(self, make: Callable[[], grpc.aio.Channel], watch: FileWatch) -> None:
        self._make = make
        self._watch = watch
        self._channel = make()
        self._ending: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """Returns the channel to use now."""
        if self._watch.changed():
            try:
                fresh = self._make()
            except StartError as error:
                if self._watch.failed(error.message):
                    get_logger().error("certificates_not_reloaded", reason=error.message)
            else:
                get_logger().info("certificates_reloaded")
                old, self._channel = self._channel, fresh
                task = asyncio.get_running_loop().create_task(old.close(_GRACE_SECONDS))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        return self._channel

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        """As the base class says."""
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        """As the base class says."""
        return _Method(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        """As the base class says."""
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        """As the base class says."""
        return _Method(self, "stream_stream", arguments, options)

    async def close(self, grace: float | None = None) -> None:
        """Closes the channel, and those before it."""
        for task in self._ending:
            task.cancel()
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 - gRPC's signature
        """As the base class says."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As the base class says."""
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As the base class says."""
        await self.current().channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Method:
    """A method of a stub, bound to the channel of the moment when it is called."""

    def __init__(
        self,
        owner: ReloadingChannel,
        kind: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        self._owner = owner
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._channel: grpc.aio.Channel | None = None
        self._bound: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        channel = self._owner.current()
        if channel is not self._channel:
            self._bound = getattr(channel, self._kind)(*self._arguments, **self._options)
            self._channel = channel
        return self._bound(*arguments, **options)
