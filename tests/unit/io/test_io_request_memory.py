"""A request of very many tiny parts takes no more memory of io than its bytes do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.io.v1 import root_service_pb2, root_service_pb2_grpc
from services.runtime.status import read_rpc_error
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
