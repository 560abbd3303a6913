"""F5: what lies between the indexer and io, embed or PostgreSQL is cut, slow, or lets half through.

Deadlines are short here, so that each fault is longer than the calls that it meets.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import Cluster, caller, make_cluster
from tests.faults.conftest import NIGHTLY_SEEDS, SEEDS
from tests.faults.proxy import FaultProxy, Harm
from tests.faults.trees import write_generated
from tests.faults.truth import check_truth
from tests.support.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_CALL_SECONDS = 1.5
_FAULT_SECONDS, _LATENCY_SECONDS = (2.5, 0.4) if SEEDS < NIGHTLY_SEEDS else (10.0, 2.0)
"""A short latency is one that calls live with, a long one lets none come through in time."""

_BACK_SECONDS = 15.0
_PAIRS = ("io", "embed", "postgres")
_SLOW_MODEL = "embed.forward.before=sleep:0.08@1+"


@pytest.fixture(scope="module")
def shared_cluster(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """One indexer that reaches all others through proxies, which a test serves."""
    url, _, place = urls[0].partition("?host=")
    sockets, _, port = place.partition("&port=")
    assert Path(sockets).is_dir()
    cluster = make_cluster(
        folder,
        roots,
        *urls,
        replicas=1,
        indexer={
            "DATABASE_URL": f"{url}?host={folder}/proxied&port={port}",
            "INDEXER_IO_ADDRESS": f"unix:{folder}/proxied/io",
            "INDEXER_EMBED_ADDRESS": f"unix:{folder}/proxied/embed",
            "INDEXER_IO_TIMEOUT_SECONDS": str(_CALL_SECONDS),
            "INDEXER_EMBED_TIMEOUT_SECONDS": str(_CALL_SECONDS),
            "INDEXER_DATABASE_TIMEOUT_SECONDS": str(_CALL_SECONDS),
        },
    )
    calm = cluster.reference.settings
    cluster.reference.settings = {
        **calm,
        "INDEXER_IO_ADDRESS": cluster.io.address,
        "INDEXER_EMBED_ADDRESS": cluster.embed.address,
    }
    (folder / "proxied").mkdir()
    for member in (cluster.io, cluster.reference):
        member.start()
    cluster.embed.start(_SLOW_MODEL)
    yield cluster
    cluster.kill()


@pytest.fixture
async def proxies(shared_cluster: Cluster) -> AsyncIterator[dict[str, FaultProxy]]:
    """Proxies that do no harm yet, and an indexer behind them."""
    folder = shared_cluster.folder / "proxied"
    place = shared_cluster.url.partition("?host=")[2]
    sockets, _, port = place.partition("&port=")
    name = f".s.PGSQL.{port}"
    made = {
        "io": FaultProxy(folder / "io", shared_cluster.io.socket),
        "embed": FaultProxy(folder / "embed", shared_cluster.embed.socket),
        "postgres": FaultProxy(folder / name, Path(sockets) / name),
    }
    for proxy in made.values():
        proxy.latency_seconds = _LATENCY_SECONDS
    async with contextlib.AsyncExitStack() as serving:
        for proxy in made.values():
            await serving.enter_async_context(proxy.serving())
        await asyncio.to_thread(shared_cluster.indexers[0].start)
        yield made
        await asyncio.to_thread(shared_cluster.indexers[0].kill)


@pytest.mark.parametrize("harm", [harm for harm in Harm if harm is not Harm.NONE])
@pytest.mark.parametrize("pair", _PAIRS)
async def test_a_partition_costs_a_wait_and_nothing_else(
    shared_cluster: Cluster, proxies: dict[str, FaultProxy], pair: str, harm: Harm
) -> None:
    """The run goes on once the harm is over, whatever came through meanwhile and whatever did not.

    Red on a planted bug: no deadline on statements (the run stands after a black hole).
    """
    cluster = shared_cluster
    name = f"cut-{pair}-{harm.replace('_', '-')}"
    write_generated(cluster.roots / name, name)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        run = await calls.begin(name)
        await calls.wait(run, lambda row: row["forwards"] > 0)
        proxies[pair].harm = harm
        await asyncio.sleep(_FAULT_SECONDS)
        proxies[pair].harm = Harm.NONE
        healed_at = time.monotonic()
        ended = await calls.wait(run)

    assert time.monotonic() - healed_at < _BACK_SECONDS
    assert (ended["state"], ended["nodes_failed"]) == ("succeeded", 0), dict(ended)
    assert cluster.indexers[0].alive
    await check_truth(cluster, name, name)


async def test_no_call_of_a_caller_outlives_its_deadline_while_the_database_is_a_black_hole(
    shared_cluster: Cluster, proxies: dict[str, FaultProxy]
) -> None:
    """It ends with a code that says what is away; the process neither hangs nor leaks."""
    name = "hole"
    write_generated(shared_cluster.roots / name, name, files=4)
    indexer = shared_cluster.indexers[0]
    async with caller(shared_cluster) as calls:
        await calls.create(name, name)
        assert (await calls.run(name))["state"] == "succeeded"
        before = indexer.descriptors()
        proxies["postgres"].harm = Harm.BLACK_HOLE
        started_at = time.monotonic()
        with pytest.raises(Exception, match=r"DEADLINE|UNAVAILABLE|does not answer"):
            await calls.search(name, "value", patience_seconds=0)
        took_seconds = time.monotonic() - started_at
        proxies["postgres"].harm = Harm.NONE
        assert await calls.search(name, "value total")

    assert took_seconds < 5 + 1
    await asyncio.to_thread(
        wait_until, lambda: indexer.descriptors() <= before + 8, 15, "descriptors are given back"
    )
