"""A request of more bytes or items than its method takes is not read; each valid one is."""

from __future__ import annotations

from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc import error_details_pb2

from lodestone.embed.v1 import embed_service_pb2 as embed_pb2
from lodestone.io.v1 import scan_service_pb2 as scan_pb2
from lodestone.limits.v1 import limits_pb2
from services.runtime.errors import InvalidRequestError
from services.runtime.interceptors import CallInterceptor, Gate
from services.runtime.reading import readable, reader
from services.runtime.request_sizes import DEFAULT_BYTES, most_request_bytes
from services.runtime.settings import ServiceSettings
from tests.support.contract_fields import (
    FIELD_RULES,
    SERVICES,
    fields_of,
    methods_of,
    new_request,
)
from tests.support.request_sizes import largest_bytes
from tests.unit.runtime.sample_calls import OPTIONS, TREE, failure_of, send_raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.runtime.running import Running

METHODS = dict(item for process in SERVICES for item in methods_of(process))
LARGE = {name: each for name, each in METHODS.items() if most_request_bytes(name) > DEFAULT_BYTES}
"""Methods that take more bytes than others."""

READ_CONTENTS = "/lodestone.io.v1.SnippetService/ReadContents"
SCAN_TREE = "/lodestone.io.v1.ScanService/ScanTree"
SERVER_BYTES = ServiceSettings.model_fields["max_message_bytes"].default
LIMIT = 1000
"""Most bytes of a request of the sample contract."""


def padded(request: Any, size: int) -> bytes:
    """Returns a request of so many bytes: the rest is a field that no one knows."""
    data: bytes = request.SerializeToString()
    left = size - len(data) - 2  # the tag of field 100
    length = next(n for n in range(1, 6) if left - n < 1 << 7 * n)
    digits = [(left - length) >> 7 * i & 127 | 128 * (i < length - 1) for i in range(length)]
    return data + b"\xa2\x06" + bytes(digits) + bytes(left - length)


SCAN = scan_pb2.ScanTreeRequest(tree=TREE)
TEXT = embed_pb2.EmbedStreamRequest(id=1, model="models/echo", options=OPTIONS, text="t")


@pytest.mark.parametrize("name", [name for name in METHODS if name != READ_CONTENTS])
def test_a_method_takes_the_largest_request_that_its_fields_allow(name: str) -> None:
    """Red for `CheckFiles` and `CreateIndexRun` when they name no number."""
    largest, most = largest_bytes(METHODS[name].input_type), most_request_bytes(name)

    if largest == inf:  # a text may be as long as the message
        assert most >= 1 << 30
    else:
        assert largest <= most < SERVER_BYTES


def test_texts_of_many_pieces_are_what_a_request_has_no_room_for() -> None:
    """What `ReadContents` says of itself: a thousand texts with hundreds of pieces have room."""
    longest = largest_bytes(METHODS[READ_CONTENTS].input_type.fields_by_name["tree"].message_type)
    usual = 1000 * (100 + 2 * 40 + 300 * 12)  # a path, two digests, pieces of a file of 2 MiB

    assert longest + usual < most_request_bytes(READ_CONTENTS) == DEFAULT_BYTES


async def test_a_request_at_its_limit_is_answered_and_one_byte_more_is_refused(
    service: Running,
) -> None:
    got: list[bytes] = []

    await send_raw(service.channel, SCAN_TREE, padded(SCAN, DEFAULT_BYTES), got=got)
    failure = await failure_of(
        send_raw(service.channel, SCAN_TREE, padded(SCAN, DEFAULT_BYTES + 1))
    )

    violations = failure.detail(error_details_pb2.BadRequest).field_violations
    assert len(got) == 2
    assert failure.code == "INVALID_ARGUMENT"
    assert failure.info.reason == "ERROR_REASON_INVALID_REQUEST"
    assert [item.field for item in violations] == ["request"]
    assert "5,242,881 bytes" in failure.message
    assert "at most 5,242,880" in failure.message
    assert "several requests" in failure.message


async def test_a_method_that_names_a_larger_number_takes_it(service: Running) -> None:
    got: list[bytes] = []
    large = embed_pb2.EmbedStreamRequest(
        id=1, model="models/echo", options=OPTIONS, text="t" * (DEFAULT_BYTES + 1)
    )

    await send_raw(
        service.channel,
        "/lodestone.embed.v1.EmbedService/EmbedStream",
        large.SerializeToString(),
        got=got,
    )

    assert len(got[0]) > DEFAULT_BYTES


@asynccontextmanager
async def sampled(address: str, package: str) -> AsyncIterator[grpc.aio.Channel]:
    """Serves a contract of its own: both methods take `LIMIT` bytes, and answer what they read."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto",
        package=package,
        dependency=[embed_pb2.DESCRIPTOR.name, limits_pb2.DESCRIPTOR.name],
    )
    contract = file.service.add(name="Sample")
    message = f".{embed_pb2.EmbedStreamRequest.DESCRIPTOR.full_name}"
    for name, streams in (("One", False), ("Each", True)):
        method = contract.method.add(
            name=name,
            input_type=message,
            output_type=message,
            client_streaming=streams,
            server_streaming=streams,
        )
        method.options.Extensions[limits_pb2.max_request_bytes] = LIMIT
    descriptor_pool.Default().Add(file)

    async def one(request: Any, _: Any) -> Any:
        return request

    async def each(requests: Any, _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    parts: Any = {
        "request_deserializer": embed_pb2.EmbedStreamRequest.FromString,
        "response_serializer": embed_pb2.EmbedStreamRequest.SerializeToString,
    }
    handlers: dict[str, Any] = {
        "One": grpc.unary_unary_rpc_method_handler(one, **parts),
        "Each": grpc.stream_stream_rpc_method_handler(each, **parts),
    }
    gate = Gate(10, open=True)
    server = grpc.aio.server(interceptors=[CallInterceptor("sample.lodestone", gate)])
    handler = grpc.method_handlers_generic_handler(f"{package}.Sample", handlers)
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
    finally:
        await server.stop(None)


@pytest.mark.parametrize("method", ["One", "Each"])
async def test_each_request_of_a_call_is_held_to_the_number_of_its_method(
    address: str, method: str
) -> None:
    package = f"lodestone.sample.{method.lower()}"
    got: list[bytes] = []
    async with sampled(address, package) as channel:
        path = f"/{package}.Sample/{method}"
        await send_raw(channel, path, padded(TEXT, LIMIT), got=got)
        before = [padded(TEXT, LIMIT)] if method == "Each" else []
        failure = await failure_of(
            send_raw(channel, path, *before, padded(TEXT, LIMIT + 1), got=got)
        )

    assert [len(answer) for answer in got] == [LIMIT] * (1 + len(before))
    assert failure.code == "INVALID_ARGUMENT"
    assert "has 1,001 bytes; this method takes at most 1,000" in failure.message


def most_items(method: Any) -> Any:
    """Returns a request of as many items as its rules allow, and of more than 5 MiB if it may."""
    request = new_request(method)
    for field in method.input_type.fields:
        if not field.is_repeated:
            continue
        count = field.GetOptions().Extensions[FIELD_RULES].repeated.max_items
        items = getattr(request, field.name)
        if field.is_packed:
            items.extend([(1 << 63) - 1] * count)
        elif field.message_type is None:
            items.extend(["t" * ((6 << 20) // count) if count < 1000 else "p" * 600] * count)
        else:
            for _ in range(count):
                items.add()
    return request


@pytest.mark.parametrize("name", LARGE)
def test_as_many_items_as_the_rules_allow_are_read(name: str) -> None:
    """Red when packed numbers count ten times, or items of one of several lists alone."""
    request = most_items(LARGE[name])
    data = padded(request, max(request.ByteSize() + 10, DEFAULT_BYTES + 1))

    read = readable(reader(type(request).FromString, name)(data))

    assert read.ByteSize() == len(data)


TEXTS = b"\x1a\x00" * (3 << 20)
"""Empty texts of `Embed` and `Rerank`, and edits of `ApplyEdits`."""

IDS = b"\x3a\x80\x80\x80\x03" + b"\x01" * (6 << 20)
"""Six million ids of nodes in one part."""


@pytest.mark.parametrize(
    ("method", "data", "problem"),
    [
        ("embed.v1.EmbedService/Embed", TEXTS, "more items"),
        ("embed.v1.RerankService/Rerank", TEXTS, "more items"),
        ("io.v1.EditService/ApplyEdits", TEXTS, "more items"),
        ("io.v1.ScanService/CheckFiles", b"\x12\x00" * (3 << 20), "more items"),
        ("indexer.v1.IndexRunService/CreateIndexRun", b"\x22\x00" * (3 << 20), "more items"),
        ("indexer.v1.IndexRunService/CreateIndexRun", IDS, "more items"),
        ("embed.v1.EmbedService/Embed", b"\x08\x01" * (3 << 20), "more items"),
        ("embed.v1.EmbedService/Embed", b"\x0b\x0c" + TEXTS, "not a valid message"),
        ("embed.v1.EmbedService/Embed", b"\x1a\xff\xff\xff\x0f" + TEXTS, "not a valid message"),
        ("embed.v1.EmbedService/Embed", b"\xff" * (6 << 20), "not a valid message"),
    ],
    ids=[
        "texts", "reranked", "edits", "files", "paths", "packed", "unknown", "group", "cut", "tag",
    ],
)  # fmt: skip
def test_a_request_of_more_items_than_the_rules_allow_is_not_read(
    method: str, data: bytes, problem: str
) -> None:
    def parse(_: bytes) -> Any:
        raise AssertionError("it was read")

    with pytest.raises(InvalidRequestError) as refused:
        readable(reader(parse, f"/lodestone.{method}")(data))

    assert problem in refused.value.metadata["request"]


@pytest.mark.parametrize("method", LARGE.values(), ids=LARGE)
def test_what_takes_many_bytes_has_no_lists_in_lists(method: Any) -> None:
    """Their items are counted as they lie in the request, outermost alone."""
    for path in fields_of(method.input_type):
        assert len(path) == 1 or not path[-1].is_repeated, path[-1].full_name
