"""F3: PostgreSQL is stopped, killed, frozen or cut off in the middle of a run, and comes back."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.cluster import Cluster, caller, fetch, make_cluster
from tests.faults.conftest import NIGHTLY_SEEDS, SEEDS, new_database, prepare
from tests.faults.proxy import FaultProxy
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.support.postgres import Database
    from tests.support.postgres_server import Server

BACK_SECONDS = 15.0
_FROZEN_SECONDS = 6.0 if SEEDS < NIGHTLY_SEEDS else 20.0
"""Longer than the lease of a run, and than a statement may take."""

_SLOW_MODEL = "embed.forward.before=sleep:0.1@1+"
"""Holds each batch up, so that a run is met in its middle."""


@pytest.fixture(scope="module")
def shared_cluster(
    folder: Path, roots: Path, server: Server, database_server: Database
) -> Iterator[Cluster]:
    """Two indexers over the server that is disturbed; the reference is on another one."""
    url, reference_url = new_database(server.database), new_database(database_server)
    cluster = make_cluster(folder, roots, url, reference_url)
    cluster.embed.start(_SLOW_MODEL)
    cluster.start()
    yield cluster
    cluster.kill()
    database_server.drop(reference_url)


@pytest.mark.parametrize(
    "fault", ["restart", "restart_at_once", "kill", "kill_backend", "terminate_backends", "freeze"]
)
async def test_a_run_goes_on_when_the_database_is_back(
    cluster: Cluster, server: Server, fault: str
) -> None:
    """Within 15 s, and without a restart of any service.

    Red on a planted bug: asyncpg's InternalClientError taken for one that does not pass (`kill`).
    """
    name = f"database-{fault.replace('_', '-')}"
    write_generated(cluster.roots / name, name)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        await calls.wait(run, lambda row: row["forwards"] > 0)

        await asyncio.to_thread(getattr(server, fault))
        if fault == "freeze":
            await asyncio.sleep(_FROZEN_SECONDS)
            server.thaw()
        back_at = time.monotonic()
        seen = await calls.wait(run, lambda _: True)
        await calls.wait(run, lambda row: _went_on(seen, row))
        went_on_at = time.monotonic()
        ended = await calls.wait(run)

    assert went_on_at - back_at < BACK_SECONDS
    assert ended["state"] == "succeeded", dict(ended)
    assert all(member.starts == 1 and member.alive for member in cluster.members)
    await check_truth(cluster, name, name)


def _went_on(seen: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return bool(row["forwards"] > seen["forwards"] or row["finished_at"] is not None)


async def test_a_commit_whose_answer_is_lost_is_found_done(
    folder: Path, roots: Path, server: Server, database_server: Database
) -> None:
    """The connection is cut after COMMIT was sent: what it wrote stands, once, and the run goes on.

    Red on a planted bug: counters added outside the transaction that ends the batch (I4).
    """
    (folder / "proxied").mkdir()
    url, reference_url = server.database.create(), database_server.create()
    await prepare(url)
    (real,) = [path for path in server.sockets.iterdir() if path.is_socket()]
    proxied = url.replace(str(server.sockets), str(folder / "proxied"))
    assert proxied != url
    proxy = FaultProxy(folder / "proxied" / real.name, real)
    cluster = make_cluster(folder / "proxied", roots, proxied, reference_url, replicas=1)
    name = "commit"
    write_generated(roots / name, name)
    try:
        async with proxy.serving():
            await asyncio.to_thread(cluster.start)
            cluster.url = url
            async with caller(cluster) as calls:
                await calls.create(name, name)
                run = await calls.begin(name)
                for _ in range(4):
                    row = await calls.wait(run, lambda row: row["forwards"] > 0)
                    if row["finished_at"] is not None:
                        break
                    async with asyncio.timeout(20):
                        await proxy.cut_after(b"COMMIT")
                ended = await calls.wait(run)
            assert ended["state"] == "succeeded", dict(ended)
            forwards = await fetch(url, "SELECT count(*) FROM embedding_cache")
            assert ended["forwards"] == forwards[0][0]
            await check_truth(cluster, name, name)
    finally:
        await asyncio.to_thread(cluster.kill)
        database_server.drop(reference_url)
