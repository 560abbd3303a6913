"""Calls that fail as a whole: no work is lost, and who is to blame stands alone.

Planted bug that turned these red: such a call told each of its files and texts that it failed for
good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from services.indexer.remote import raise_unavailable
from services.runtime.errors import (
    DependencyUnavailableError,
    ForbiddenError,
    UnauthenticatedError,
)
from services.runtime.status import DETAILS_KEY, status_of
from tests.integration.indexing import State, indexing
from tests.integration.oracle import check
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from services.runtime.errors import LodestoneError
    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing
    from tests.integration.io_hooks import IoHook

REFUSALS = (UnauthenticatedError("The token has expired."), ForbiddenError("It may not do this."))


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook, io_hook: IoHook
) -> AsyncIterator[Indexing]:
    write_many(roots / "tree", 1)
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as running:
        await running.create("tree", "tree")
        yield running


def _refuse(*errors: LodestoneError) -> Callable[..., list[Any]]:
    """Returns what raises each of the errors once, and then lets answers pass."""
    left = list(errors)

    def spoil(answer: Any, _texts: Any = None) -> list[Any]:
        if left:
            raise left.pop()
        return [answer]

    return spoil


@pytest.mark.parametrize("method", ["ScanTree", "ParseFiles", "ReadContents", "Embed"])
async def test_a_token_that_is_refused_for_a_while_costs_a_wait(
    services: Indexing, hook: Hook, io_hook: IoHook, method: str
) -> None:
    if method == "Embed":
        hook.spoil = _refuse(*REFUSALS)
    else:
        io_hook.spoil[method] = _refuse(*REFUSALS)

    run = await services.run("tree")

    assert run.state == State.STATE_SUCCEEDED, run
    assert (run.progress.nodes_failed, run.progress.files_failed) == (0, 0)
    await check(services, "tree", "tree")


@pytest.mark.parametrize("method", ["ParseFiles", "ReadContents"])
async def test_what_io_fails_a_call_for_fails_alone(
    services: Indexing, io_hook: IoHook, roots: Path, method: str
) -> None:
    write_many(roots / "tree", 8, per_file=1)

    def fail_for_one(answer: Any) -> list[Any]:
        if b"work_3" in answer.SerializeToString():
            raise RuntimeError
        return [answer]

    io_hook.spoil[method] = fail_for_one
    run = await services.run("tree")
    failures = await services.failures(run)

    assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    assert [(item.path, item.result) for item in failures] == [
        ("part_000003.py", runs_pb2.Outcome.RESULT_FAILED)
    ]
    assert run.progress.nodes_embedded == 7


async def test_a_connection_that_breaks_off_tells_nothing_of_what_was_asked() -> None:
    """As a proxy does whose service was killed; a service itself always tells a reason."""

    def error(reason: str) -> grpc.aio.AioRpcError:
        told = [(DETAILS_KEY, status_of(RuntimeError(), reason).SerializeToString())]
        return grpc.aio.AioRpcError(
            grpc.StatusCode.INTERNAL,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(*told if reason else ()),
            "Received RST_STREAM with error code 2",
        )

    raise_unavailable(error("io.lodestone"), "io")
    with pytest.raises(DependencyUnavailableError):
        raise_unavailable(error(""), "io")
