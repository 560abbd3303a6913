"""`make bench`: the product against the plain library, in one run. The last line is JSON.

(a) sentence-transformers `encode` in float32, (b) the embed service over gRPC, both on the same
texts of real nodes; (c) a whole cold `index` of the tree. Only ratios within a run mean something
on a machine that is shared. `--quick` leaves out the tree four times as large.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.bench.embed_texts import (
    Measured,
    least_cosine,
    measure_library,
    measure_service,
    running_service,
)
from tests.bench.figures import figure, say
from tests.bench.memory import MemoryPeak
from tests.bench.node_texts import sample_texts
from tests.bench.trees import multiply
from tests.support.postgres import make_reachable_folder
from tests.support.stack import Lodestone

if TYPE_CHECKING:
    from collections.abc import Iterator

TREE = Path("build/corpora/django")
_TEXTS = 1536
_ROUNDS = 2
_UNCHANGED_RUNS = 7
_TIMES = 4
_LONGEST_INDEX_SECONDS = 3600.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ColdIndex:
    """A first index of a tree."""

    report: dict[str, Any]
    seconds: float
    tokens: int
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens that the model read, over the time of the whole command."""
        return self.tokens / self.seconds


def main() -> None:
    """Runs everything, tells what it does, and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the larger tree")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="lodestone-bench-") as models:
        results = measure(Path(models), quick=quick)
    sys.stdout.write(json.dumps(results) + "\n")


def measure(models: Path, *, quick: bool) -> dict[str, Any]:
    """Returns all figures; both trees are embedded by one conversion of the model in one layout."""
    with product(models) as (lodestone, folder):
        tree = folder / "tree"
        shutil.copytree(TREE, tree)
        say("cold index of the tree, with the real model")
        cold = index_cold(lodestone, tree)
        say(f"  {cold.seconds:.1f} s, {cold.tokens} tokens, {cold.peak_bytes / _MIB:.0f} MiB")
        results = unchanged(lodestone, tree)
        library, service = asyncio.run(compare_embedding(lodestone, tree))
        results |= embedding_results(library, service, cold)
        results["cold_index_seconds"] = figure(cold.seconds)
        results["peak_memory_mib_1x"] = figure(cold.peak_bytes / _MIB)
    if not quick:
        large = index_large(models)
        growth = large.peak_bytes / cold.peak_bytes
        results["peak_memory_mib_4x"] = figure(large.peak_bytes / _MIB)
        results["peak_memory_4x_to_1x"] = figure(growth, 1.15, met=growth <= 1.15)
    return results


@contextmanager
def product(models: Path) -> Iterator[tuple[Lodestone, Path]]:
    """Yields the running product over a new data folder, and a folder for trees."""
    folder = make_reachable_folder()
    lodestone = Lodestone(folder / "data").with_settings(EMBED_CACHE_DIR=str(models))
    try:
        started = lodestone.run("up", timeout_seconds=300)
        assert started.code == 0, started.stderr
        yield lodestone, folder
    finally:
        lodestone.run("down")
        shutil.rmtree(folder)


def index_cold(lodestone: Lodestone, tree: Path) -> ColdIndex:
    """Indexes a tree for the first time; the services run already."""
    with MemoryPeak(
        lambda: [lodestone.process(name).pid for name in lodestone.state.processes]
    ) as m:
        started = time.perf_counter()
        done = lodestone.run("index", str(tree), "--json", timeout_seconds=_LONGEST_INDEX_SECONDS)
        seconds = time.perf_counter() - started
    assert done.code == 0, done.stderr
    report = done.json
    assert report["state"] == "succeeded", report
    return ColdIndex(report, seconds, asyncio.run(read_tokens(lodestone, report)), m.peak_bytes)


async def read_tokens(lodestone: Lodestone, report: dict[str, Any]) -> int:
    """Returns the tokens of a run, from the ledger; checks the report against the tables."""
    connection = await asyncpg.connect(lodestone.database_url())
    try:
        run_id = report["run"].rpartition("/")[2]
        row = await connection.fetchrow(
            "SELECT workspace_id, tokens FROM runs WHERE id = $1", run_id
        )
        assert row is not None
        nodes = await connection.fetch(
            "SELECT status, count(*) AS n FROM nodes WHERE workspace_id = $1 GROUP BY status",
            row["workspace_id"],
        )
    finally:
        await connection.close()
    counts = {item["status"]: item["n"] for item in nodes}
    told = report["nodes"]
    assert told["total"] == sum(counts.values()), (told, counts)
    assert told["embedded"] + told["reused"] == counts["embedded"], (told, counts)
    assert told["failed"] == counts.get("failed", 0), (told, counts)
    return int(row["tokens"])


def unchanged(lodestone: Lodestone, tree: Path) -> dict[str, Any]:
    """Measures the whole command on an unchanged tree, and `git status` on the same tree."""
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qm", "tree")
    ours, gits = [], []
    for _ in range(_UNCHANGED_RUNS):
        started = time.perf_counter()
        report = lodestone.index(tree)
        ours.append(time.perf_counter() - started)
        assert report["forwards"] == 0, report
        started = time.perf_counter()
        git(tree, "status", "--porcelain")
        gits.append(time.perf_counter() - started)
    seconds, git_seconds = statistics.median(ours), statistics.median(gits)
    say(f"unchanged: {min(ours):.2f} to {max(ours):.2f} s; git status {git_seconds:.3f} s")
    return {
        "unchanged_index_seconds": figure(seconds, 1.0, met=seconds < 1.0),
        "unchanged_to_git_status": figure(seconds / git_seconds),
    }


def git(tree: Path, *arguments: str) -> None:
    """Runs git in a tree."""
    subprocess.run(["git", "-C", str(tree), *arguments], check=True, stdout=subprocess.DEVNULL)


async def compare_embedding(
    lodestone: Lodestone, tree: Path
) -> tuple[list[Measured], list[Measured]]:
    """Returns runs of the library and of the service, in turn, on the same texts."""
    io_address = lodestone.state.processes["io"].address
    directory = str(tree).lstrip("/")
    texts = await sample_texts(lodestone.database_url(), io_address, directory, _TEXTS)
    library, service = [], []
    settings = {"CACHE_DIR": lodestone.settings["LODESTONE_EMBED_CACHE_DIR"]}
    for _ in range(_ROUNDS):
        async with running_service(settings) as running:
            service.append(await measure_service(running, texts))
        say(f"service {service[-1].texts_per_second:.0f} texts/s")
        library.append(await asyncio.to_thread(measure_library, texts))
        say(f"library {library[-1].texts_per_second:.0f} texts/s")
        async with running_service(settings) as running:
            service.append(await measure_service(running, texts))
        say(f"service {service[-1].texts_per_second:.0f} texts/s")
    return library, service


def embedding_results(
    library: list[Measured], service: list[Measured], cold: ColdIndex
) -> dict[str, Any]:
    """Returns the ratios b to a and c to b, and how close the vectors are."""
    a = statistics.median(item.texts_per_second for item in library)
    b = statistics.median(item.texts_per_second for item in service)
    b_tokens = statistics.median(item.tokens_per_second for item in service)
    cosine = min(least_cosine(service[0].vectors, item.vectors) for item in library)
    hidden = cold.tokens_per_second / b_tokens
    return {
        "service_to_library": figure(b / a, 2.5, met=b / a >= 2.5),
        "cold_index_to_service": figure(hidden, 0.9, met=hidden >= 0.9),
        "least_cosine_to_float32": figure(cosine, 0.999, met=cosine >= 0.999),
        "library_texts_per_second": figure(a),
        "service_texts_per_second": figure(b),
        "service_tokens_per_second": figure(b_tokens),
        "cold_index_tokens_per_second": figure(cold.tokens_per_second),
    }


def index_large(models: Path) -> ColdIndex:
    """Indexes the tree four times over, each copy with texts of its own."""
    with product(models) as (lodestone, folder):
        multiply(TREE, folder / "trees", _TIMES)
        say(f"cold index of {_TIMES} times the tree: minutes")
        large = index_cold(lodestone, folder / "trees")
        say(f"  {large.seconds:.1f} s, {large.report['nodes']}, {large.peak_bytes / _MIB:.0f} MiB")
        return large


if __name__ == "__main__":
    main()
