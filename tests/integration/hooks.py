"""An embed service with a place to stop or break it: before each call, with the call's texts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from services.embed.app import EmbedApp
from services.embed.servicers import EmbedServicer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lodestone.embed.v1 import embed_service_pb2
    from services.embed.settings import EmbedSettings
    from services.runtime.server import App


class Hook:
    """What happens to calls: they are counted, may be held up, and may find the service dead."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.poison = ""
        """Calls with a text that holds this end as if the process had died."""
        self.code = grpc.StatusCode.UNAVAILABLE
        self.repeated = False
        """Whether channels make such a call again, which takes them a second or two each time."""
        self.spoil: Callable[[embed_service_pb2.EmbedResponse, Sequence[str]], object] = (
            lambda _response, _texts: None
        )
        """Changes each answer in place, given its texts: what the model made is sent wrong."""

    def app(self, settings: EmbedSettings) -> App:
        """Returns the service; pass this method as `embed`."""
        return _App(settings, self)

    def hold(self) -> None:
        """Holds up calls from now on; `reached` tells of the first."""
        self.reached.clear()
        self.go_on.clear()

    @property
    def texts(self) -> list[str]:
        """All texts that were sent, in order."""
        return [text for call in self.calls for text in call]

    async def before(self, texts: Sequence[str], context: Any) -> None:
        """Runs before each call."""
        self.calls.append(list(texts))
        self.reached.set()
        await self.go_on.wait()
        if self.poison and any(self.poison in text for text in texts):
            if not self.repeated:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", "-1"),))
            await context.abort(self.code, "the process died")


class _Servicer(EmbedServicer):
    hook: Hook

    async def Embed(  # noqa: N802 - the contract's name
        self, request: embed_service_pb2.EmbedRequest, context: Any
    ) -> embed_service_pb2.EmbedResponse:
        await self.hook.before(request.texts, context)
        response = await super().Embed(request, context)
        self.hook.spoil(response, request.texts)
        return response


class _App(EmbedApp):
    def __init__(self, settings: EmbedSettings, hook: Hook) -> None:
        super().__init__(settings)
        self._embed = _Servicer(self._registry, stream_groups=settings.stream_groups)
        self._embed.hook = hook
