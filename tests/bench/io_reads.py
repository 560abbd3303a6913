"""Verified reads against plain `pread` of the same ranges of the same files, in one run.

`python -m tests.bench.io_reads` prints JSON as its last line. The reference opens each file of a
batch once and reads each range with `os.pread`: it checks no path, no digest and no character.
Reads of ours and of the reference take turns; what is told is the median of the rounds' ratios.
Batches are read one after the other, which shows what the way to a thread and back costs, and
`_IN_FLIGHT` at once, as the indexer reads them; there the reference has as many threads.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lodestone.io.v1 import snippet_service_pb2, snippet_service_pb2_grpc, tree_pb2
from services.io.cache import FileCache
from services.io.loader import FileLoader
from services.io.model import FileToParse, ParsedFile, Root, SnippetRef, SymlinkPolicy
from services.io.parser.file import ParseLimits, parse_file
from services.io.parser.grammars import Grammars
from services.io.paths import Tree
from services.io.reader import Reader
from services.runtime.garbage import collect_less
from tests.bench.figures import figure, say
from tests.unit.io.harness import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

TREE = Path("build/corpora/django").resolve()
BATCH_NODES = 128
_BATCHES = 24
_IN_FLIGHT = 4
_ROUNDS = 9
_THREADS = 8
_CACHE_BYTES = 256 << 20
_MIB = 1 << 20
_LIMITS = ParseLimits(2 << 20, 10_000, 256)

Batch = list[SnippetRef]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to read a batch; it returns how many bytes it got."""

    name: str
    read: Callable[[Batch], Awaitable[int]]
    in_flight: int = 1
    reference: str = "pread"


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Measures all ways to read; `scratch` is an empty folder."""
    files = parsed_files()
    random.seed(7)
    results: dict[str, dict[str, Any]] = {}
    for shape, batches in (("scattered", scattered(files)), ("adjacent", adjacent(files))):
        paths = statistics.mean(len({ref.path for ref in batch}) for batch in batches)
        say(f"{shape}: {len(batches)} batches of {BATCH_NODES} nodes of {paths:.0f} files")
        socket = scratch / f"{shape}.sock"
        collect_less()  # as the service does when it has started
        for name, ratio in asyncio.run(ratios(batches, socket)).items():
            is_goal = name in {"reader", "reader_in_flight"}
            goal = 0.5 if is_goal else None
            key = f"read_{shape}_{name}_to_pread"
            results[key] = figure(ratio, goal, met=not is_goal or ratio >= 0.5)
    return results


async def ratios(batches: Sequence[Batch], socket: Path) -> dict[str, float]:
    """Returns the rate of each way as a share of the reference's, median of the rounds."""
    async with AsyncExitStack() as opened:
        ways = [await opened.enter_async_context(way) for way in all_ways(socket)]
        seconds: dict[str, list[float]] = {way.name: [] for way in ways}
        for way in ways:  # pages, imports and the cache are warm for all
            assert await read_all(way, batches) == await read_all(ways[0], batches), way.name
        for _ in range(_ROUNDS):
            for way in ways:
                started = time.perf_counter()
                await read_all(way, batches)
                seconds[way.name].append(time.perf_counter() - started)
    nodes = sum(map(len, batches))
    told = {}
    for way in ways:
        name, times = way.name, seconds[way.name]
        reference = seconds[way.reference]
        if times is reference:
            say(f"  {name}: {nodes / statistics.median(times):,.0f} nodes/s")
            continue
        told[name] = statistics.median(a / b for a, b in zip(reference, times, strict=True))
        say(f"  {name}: {nodes / statistics.median(times):,.0f} nodes/s, ratio {told[name]:.3f}")
    return told


async def read_all(way: Way, batches: Sequence[Batch]) -> int:
    """Reads all batches, as many at once as the way says; returns the bytes."""
    waiting = iter(batches)

    async def read() -> int:
        return sum([await way.read(batch) for batch in waiting])

    return sum(await asyncio.gather(*(read() for _ in range(way.in_flight))))


def all_ways(socket: Path) -> list[Any]:
    """Returns the ways, the reference first."""
    cached = {"cache_bytes": _CACHE_BYTES}
    return [
        plain_reads(),
        plain_reads_in_threads(),
        reader_reads("reader", 0),
        reader_reads("reader_in_flight", 0, _IN_FLIGHT, "pread_in_flight"),
        reader_reads("reader_cached", _CACHE_BYTES),
        grpc_reads("grpc", socket),
        grpc_reads("grpc_cached", socket.with_suffix(".cached"), **cached),
    ]


@asynccontextmanager
async def plain_reads() -> AsyncIterator[Way]:
    """The reference: each file of a batch is opened once, each range read by `pread`."""

    async def read(batch: Batch) -> int:
        return _pread(batch)

    yield Way("pread", read)


@asynccontextmanager
async def plain_reads_in_threads() -> AsyncIterator[Way]:
    """The reference of a service whose loop is to stay free: as many threads as calls."""
    with ThreadPoolExecutor(_IN_FLIGHT) as threads:

        async def read(batch: Batch) -> int:
            return await asyncio.get_running_loop().run_in_executor(threads, _pread, batch)

        yield Way("pread_in_flight", read, _IN_FLIGHT, "pread_in_flight")


def _pread(batch: Batch) -> int:
    by_path: dict[str, list[SnippetRef]] = {}
    for ref in batch:
        by_path.setdefault(ref.path, []).append(ref)
    total = 0
    for path, refs in by_path.items():
        fd = os.open(f"{TREE}/{path}", os.O_RDONLY)
        for ref in refs:
            total += len(os.pread(fd, ref.end - ref.start, ref.start))
        os.close(fd)
    return total


@asynccontextmanager
async def reader_reads(
    name: str, cache_bytes: int, in_flight: int = 1, reference: str = "pread"
) -> AsyncIterator[Way]:
    """Our reader in this process."""
    root = Root("tree", str(TREE), SymlinkPolicy.WITHIN_ROOT)
    with ThreadPoolExecutor(_THREADS) as threads:
        loader = FileLoader(_LIMITS.max_file_bytes, FileCache(cache_bytes) if cache_bytes else None)
        reader = Reader(threads, loader, permits=100, max_answer_bytes=32 * _MIB)

        async def read(batch: Batch) -> int:
            results = await reader.read_snippets(partial(Tree, root), batch)
            return sum(len(result) for result in results if isinstance(result, bytes))

        yield Way(name, read, in_flight, reference)


@asynccontextmanager
async def grpc_reads(name: str, socket: Path, **options: object) -> AsyncIterator[Way]:
    """The service in this process, over a Unix socket."""
    async with serve(TREE, socket, **options) as channel:
        stub: Any = snippet_service_pb2_grpc.SnippetServiceStub(channel)

        async def read(batch: Batch) -> int:
            response = await stub.ReadSnippets(request_of(batch))
            return sum(len(result.content) for result in response.results)

        yield Way(name, read)


def request_of(batch: Batch) -> snippet_service_pb2.ReadSnippetsRequest:
    """Returns a batch as a request."""
    return snippet_service_pb2.ReadSnippetsRequest(
        tree=tree_pb2.Tree(root="roots/test"),
        refs=[
            snippet_service_pb2.SnippetRef(
                path=ref.path,
                start_byte=ref.start,
                end_byte=ref.end,
                file_digest=ref.file_digest,
            )
            for ref in batch
        ],
    )


def parsed_files() -> list[list[SnippetRef]]:
    """Returns the nodes of each Python file of the tree, as ranges."""
    grammars = Grammars()
    files = []
    with Tree(Root("tree", str(TREE), SymlinkPolicy.WITHIN_ROOT)) as tree:
        for place in sorted(TREE.rglob("*.py")):
            path = str(place.relative_to(TREE))
            outcome = parse_file(tree, FileToParse(0, path), _LIMITS, grammars)
            if isinstance(outcome, ParsedFile) and outcome.nodes:
                digest = outcome.digest
                files.append([SnippetRef(path, n.start, n.end, digest) for n in outcome.nodes])
    return files


def scattered(files: Sequence[Sequence[SnippetRef]]) -> list[Batch]:
    """Returns batches of nodes drawn at random: nearly each of another file."""
    nodes = [node for file in files for node in file]
    return [random.sample(nodes, BATCH_NODES) for _ in range(_BATCHES)]


def adjacent(files: Sequence[Sequence[SnippetRef]]) -> list[Batch]:
    """Returns batches of nodes that follow each other, as the indexer claims them."""
    nodes = [node for file in files for node in file]
    starts = [random.randrange(len(nodes) - BATCH_NODES) for _ in range(_BATCHES)]
    return [nodes[start : start + BATCH_NODES] for start in starts]


def main() -> None:
    """Measures, and prints one line of JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(measure(Path(scratch))) + "\n")


if __name__ == "__main__":
    main()
