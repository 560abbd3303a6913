"""PostgreSQL stops in the middle of a run, orderly or not, and comes back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.hooks import Hook
from tests.integration.indexing import State, indexing
from tests.integration.oracle import check
from tests.integration.samples import write_many
from tests.support.postgres_server import running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.postgres_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_a_run_goes_on_when_the_database_is_back(
    server: Server, roots: Path, sockets: Path, how: str
) -> None:
    """F3: back within 15 s without a restart of any service, and equal to an index from scratch."""
    hook = Hook()
    write_many(roots / "tree", 60, per_file=6)
    async with indexing(
        roots, sockets, server.url, embed=hook.app, embed_batch_nodes=8, embed_batches_in_flight=2
    ) as services:
        await services.create("tree", "tree")
        hook.hold()
        run = await services.begin("tree")
        await hook.reached.wait()

        getattr(server, how)()
        hook.go_on.set()
        back_at = time.monotonic()
        run = await services.wait(run)

        assert run.state == State.STATE_SUCCEEDED
        assert time.monotonic() - back_at < 15
        await check(services, "tree", "tree")
