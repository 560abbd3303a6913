"""A small request takes little memory of io, and one of tiny parts no more than its bytes do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from blake3 import blake3

from lodestone.io.v1 import (
    parse_service_pb2,
    root_service_pb2,
    root_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
)
from services.io.content import content_hash, normal_form
from services.runtime.status import read_rpc_error, read_status
from tests.unit.io.service_process import running

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.io.harness import MakeFiles

ITEM = b"\x12\x00"
"""An empty item of a list, as it is sent: a piece of a text, or a file."""

MOST_BYTES = 300 << 20
"""Three copies of the request's bytes, of gRPC's and Python's (179 MiB were seen), and some room.
Read, the pieces take 1,435 MiB, the files 1,818."""


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def many_pieces() -> bytes:
    """Returns a request of one text in 60 MiB of pieces."""
    length = 60 << 20
    digits = bytes((length >> 7 * i & 127) | 128 * (i < 3) for i in range(4))
    return b"\x12" + digits + ITEM * (length // len(ITEM))


def many_files() -> bytes:
    """Returns a request of as many files as the 44 MiB that it may have hold."""
    return ITEM * ((44 << 20) // len(ITEM))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "make", "problem"),
    [
        ("SnippetService/ReadContents", many_pieces, "has 62,914,565 bytes; at most 5,242,880"),
        ("ScanService/CheckFiles", many_files, "has more items than the rules of its fields allow"),
    ],
)
async def test_a_request_of_millions_of_items_is_refused_before_it_is_read(
    make_files: MakeFiles,
    tmp_path: Path,
    method: str,
    make: Callable[[], bytes],
    problem: str,
) -> None:
    top = make_files({"a.py": "x = 1\n"})
    options = [("grpc.max_send_message_length", -1)]
    async with (
        running(top, tmp_path) as (service, _),
        grpc.aio.insecure_channel(service.address, options=options) as channel,
    ):
        roots = root_service_pb2_grpc.RootServiceStub(channel)
        listing = root_service_pb2.ListRootsRequest()
        await roots.ListRoots(listing, wait_for_ready=True)
        call: Any = channel.unary_unary(f"/lodestone.io.v1.{method}")
        before = peak_bytes(service.process.pid)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(make())
        grown = peak_bytes(service.process.pid) - before
        after = await roots.ListRoots(listing)

    error = read_rpc_error(failure.value)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "ERROR_REASON_INVALID_REQUEST")
    assert error.fields["request"] == problem
    assert grown < MOST_BYTES
    assert len(after.roots) == 1


DATA = b"x = 1\n" * ((2 << 20) // 6)
DIGEST = blake3(DATA).digest()
TREE = tree_pb2.Tree(root="roots/test")


def many_ranges() -> snippet_service_pb2.ReadSnippetsRequest:
    """Returns a request of 70 kB for a thousand times nearly all of one file: 2 GiB."""
    ref = snippet_service_pb2.SnippetRef(
        path="a.py", start_byte=1, end_byte=len(DATA), file_digest=DIGEST
    )
    return snippet_service_pb2.ReadSnippetsRequest(tree=TREE, refs=[ref] * 1000)


def many_texts() -> snippet_service_pb2.ReadContentsRequest:
    """Returns a request for a hundred times the text of one file: 200 MiB."""
    ref = snippet_service_pb2.ContentRef(
        path="a.py",
        segments=[parse_service_pb2.ByteRange(end_byte=len(DATA))],
        file_digest=DIGEST,
        content_hash=content_hash(normal_form(DATA, [(0, len(DATA))])),
    )
    return snippet_service_pb2.ReadContentsRequest(tree=TREE, refs=[ref] * 100)


def equal_pieces() -> snippet_service_pb2.ReadContentsRequest:
    """Returns a request for a text of a thousand times one file, and its neighbour."""
    whole = parse_service_pb2.ByteRange(end_byte=len(DATA))
    ref = snippet_service_pb2.ContentRef(
        path="a.py", segments=[whole] * 1000, file_digest=DIGEST, content_hash=DIGEST
    )
    return snippet_service_pb2.ReadContentsRequest(tree=TREE, refs=[ref])


@pytest.mark.parametrize(
    ("request_of", "read", "reasons"),
    [
        (many_ranges, 16, {"ERROR_REASON_OVERLOADED"}),
        (many_texts, 16, {"ERROR_REASON_OVERLOADED"}),
        (equal_pieces, 0, {"ERROR_REASON_INVALID_REQUEST"}),
    ],
    ids=["ranges", "texts", "pieces"],
)
async def test_a_file_that_is_asked_for_often_is_held_no_more_than_an_answer_may_be(
    make_files: MakeFiles,
    tmp_path: Path,
    request_of: Callable[[], Any],
    read: int,
    reasons: set[str],
) -> None:
    """Red when all results of a file are held before any is refused, or pieces may overlap.

    The service grew by 2.0 GiB and 230 MiB; for pieces it had no answer within a minute, and ten
    times as many may be in a text.
    """
    top = make_files({"a.py": DATA})
    options = [("grpc.max_receive_message_length", -1)]
    async with (
        running(top, tmp_path) as (service, _),
        grpc.aio.insecure_channel(service.address, options=options) as channel,
    ):
        roots = root_service_pb2_grpc.RootServiceStub(channel)
        await roots.ListRoots(root_service_pb2.ListRootsRequest(), wait_for_ready=True)
        stub = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        request = request_of()
        name = type(request).DESCRIPTOR.name.removesuffix("Request")
        before = peak_bytes(service.process.pid)
        answer = await getattr(stub, name)(request, timeout=60)
        grown = peak_bytes(service.process.pid) - before

    outcomes = [result.WhichOneof("outcome") for result in answer.results]
    assert outcomes == ["content"] * read + ["error"] * (len(request.refs) - read)
    errors = [read_status(result.error).reason for result in answer.results[read:]]
    assert set(errors) == reasons
    assert grown < 200 << 20
