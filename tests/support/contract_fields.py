"""The methods of the contracts, and every field that a caller may set in their requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from buf.validate import validate_pb2
from google.protobuf import descriptor_pool, message_factory

from services.embed.app import EmbedApp
from services.indexer.app import IndexerApp
from services.io.app import IoApp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVICES = {
    "io": IoApp.service_names,
    "embed": EmbedApp.service_names,
    "indexer": IndexerApp.service_names,
}
"""Full names of the protobuf services of each process."""

_VALIDATE: Any = validate_pb2
FIELD_RULES = _VALIDATE.field
"""The option of a field that holds its rules; generated code has no type of it."""

FieldPath = tuple[Any, ...]
"""Descriptors of fields, from the request in."""

_KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def methods_of(process: str) -> Iterator[tuple[str, Any]]:
    """Yields the methods of a process: the name as gRPC spells it, and the descriptor."""
    pool = descriptor_pool.Default()
    for service in SERVICES[process]:
        for method in pool.FindServiceByName(service).methods:
            yield f"/{service}/{method.name}", method


def fields_of(message: Any, above: FieldPath = ()) -> Iterator[FieldPath]:
    """Yields the path of each field in a message type, those of our own messages in it included."""
    for field in message.fields:
        path = (*above, field)
        yield path
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry:
            continue
        if inner.full_name.startswith("lodestone.") and inner not in {
            item.containing_type for item in path
        }:
            yield from fields_of(inner, path)


def dotted(path: FieldPath) -> str:
    """Returns a path as rules and errors spell it, e.g. `workspace.tree.root`."""
    return ".".join(field.name for field in path)


def new_request(method: Any) -> Any:
    """Returns an empty request of a method."""
    return message_factory.GetMessageClass(method.input_type)()


def set_field(request: Any, path: FieldPath, values: Sequence[Any]) -> None:
    """Sets one field of a request; of a repeated one on the way, a first item is made.

    Args:
        request: the message to change.
        path: the field.
        values: its value alone, or all its items if it is repeated.
    """
    holder = request
    for field in path[:-1]:
        inner = getattr(holder, field.name)
        holder = (inner[0] if len(inner) else inner.add()) if field.is_repeated else inner
        if not field.is_repeated:
            holder.SetInParent()
    last = path[-1]
    if last.is_repeated:
        items = getattr(holder, last.name)
        del items[:]
        items.extend(values)
    else:
        setattr(holder, last.name, values[0])


def start_call(
    channel: grpc.aio.Channel, name: str, method: Any, request: Any, *, seconds: float = 10
) -> Any:
    """Returns the call of any method with one request, also in bytes; its answers are bytes."""
    kind = _KINDS[method.client_streaming, method.server_streaming]
    call = getattr(channel, kind)(
        name,
        request_serializer=_bytes_of,
        response_deserializer=lambda data: data,
    )
    return call(iter([request]) if method.client_streaming else request, timeout=seconds)


def _bytes_of(request: Any) -> bytes:
    data: bytes = request if isinstance(request, bytes) else request.SerializeToString()
    return data


async def failure_of(call: Any) -> grpc.aio.AioRpcError | None:
    """Returns how a call failed, None if it did not; a stream is read to its first message."""
    try:
        if hasattr(call, "__aiter__"):
            await anext(aiter(call))
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    except StopAsyncIteration:
        pass
    return None


async def end_of(call: Any) -> tuple[bytes, grpc.aio.AioRpcError | None]:
    """Returns all answers of a call, one after the other, and how it failed if it did."""
    told = b""
    try:
        if hasattr(call, "__aiter__"):
            async for answer in call:
                told += answer
        else:
            told = await call
    except grpc.aio.AioRpcError as error:
        return told, error
    return told, None
