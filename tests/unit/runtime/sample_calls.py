"""Calls to the sample service, and what their failures told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from lodestone.embed.v1 import embed_service_pb2 as embed_pb2
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.io.v1 import scan_service_pb2 as scan_pb2
from lodestone.io.v1 import scan_service_pb2_grpc as scan_grpc
from lodestone.io.v1 import tree_pb2
from services.runtime.status import DETAILS_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

OPTIONS = embed_pb2.EmbedOptions(purpose=embed_pb2.PURPOSE_DOCUMENT)
TREE = tree_pb2.Tree(root="roots/here")


@dataclass(frozen=True)
class Failure:
    """What a failed call told its caller."""

    code: str
    message: str
    status: status_pb2.Status

    def detail(self, kind: type[Any]) -> Any:
        """Returns the detail of one type; fails when there is none."""
        found = kind()
        assert any(item.Unpack(found) for item in self.status.details), self.status
        return found

    @property
    def info(self) -> Any:
        """The `ErrorInfo`."""
        return self.detail(error_details_pb2.ErrorInfo)


async def failure_of(call: Awaitable[Any]) -> Failure:
    """Awaits a call that must fail; returns what it told."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = status_pb2.Status()
    for key, value in caught.value.trailing_metadata():
        if key == DETAILS_KEY:
            status.ParseFromString(value)
    return Failure(caught.value.code().name, str(caught.value.details()), status)


def embed(
    channel: grpc.aio.Channel, model: str, *texts: str, **options: Any
) -> Awaitable[embed_pb2.EmbedResponse]:
    """Calls `Embed` for a model of the sample service."""
    request = embed_pb2.EmbedRequest(
        model=f"models/{model}", options=OPTIONS, texts=texts or ("text",)
    )
    call: Awaitable[embed_pb2.EmbedResponse] = embed_grpc.EmbedServiceStub(channel).Embed(
        request, **options
    )
    return call


def embed_stream(channel: grpc.aio.Channel, *texts: str) -> Any:
    """Calls `EmbedStream` with some texts."""

    async def requests() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        for number, text in enumerate(texts):
            yield embed_pb2.EmbedStreamRequest(
                id=number, model="models/echo", options=OPTIONS, text=text
            )

    return embed_grpc.EmbedServiceStub(channel).EmbedStream(requests(), timeout=5)


def scan(channel: grpc.aio.Channel, directory: str = "", timeout_seconds: float = 5) -> Any:
    """Calls `ScanTree` for a folder of the sample service."""
    request = scan_pb2.ScanTreeRequest(tree=tree_pb2.Tree(root="roots/here", directory=directory))
    return scan_grpc.ScanServiceStub(channel).ScanTree(request, timeout=timeout_seconds)


async def drained(call: Any, into: list[Any]) -> None:
    """Reads a stream to its end, into a list that is there also when the stream fails."""
    async for response in call:
        into.append(response)  # noqa: PERF401 - must hold what came before a failure


NO_MESSAGES = (
    b"\xff\xff\xff",
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x1a\x03\xff\xfe\xfd",
    b"\x12\x03\xff\xfe\xfd",
    b"\x0a\x7fcut off",
)
"""A bad tag, a length beyond the end, texts that are not UTF-8, a message that is cut off."""


async def send_raw(
    channel: grpc.aio.Channel, method: str, *messages: bytes, got: list[bytes] | None = None
) -> None:
    """Sends bytes as the requests of a method, whatever they are; the answers go to `got`."""

    async def requests() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    call: Any = channel.stream_stream(method)
    answers = call(requests(), timeout=5)
    async for answer in answers:
        if got is not None:
            got.append(answer)
