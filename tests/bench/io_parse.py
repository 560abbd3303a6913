"""How fast the pool cuts files into nodes, beside one core that does so and one that only parses.

The files are those of the corpora that have a grammar. Four ways take turns: a bare loop reads each
file and hands it to tree-sitter; our loop reads it, cuts it into nodes and serializes them, in this
process; the pool does that in one worker, and in two. Where others work on the machine too, two
workers get two shares of it and a loop gets one, so that the scaling is not told right: the load is
told beside it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.io import convert
from services.io.model import FileToParse, Root, SymlinkPolicy
from services.io.names import NameRules
from services.io.parser.file import ParseLimits, parse_file
from services.io.parser.grammars import Grammars
from services.io.parser.languages import RULES
from services.io.parser.pool import ParseJob, WorkerOptions, WorkerPool
from services.io.paths import Tree
from services.io.scanner import ScanRules, TreeScan
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.io.model import ScannedFile

CORPORA = Path("build/corpora")
_TREES = frozenset({"click", "django", "flask", "jinja2"})
SCALING_GOAL = 1.6
_ROUNDS = 5
_LIMITS = ParseLimits(2 << 20, 10_000, 256)
_CALL_FILES = 1000


def measure(_scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the ratios of the pool to one core; reads the corpora where they are."""
    root = Root("bench", str(CORPORA.resolve()), SymlinkPolicy.DENY)
    files = _files(root)
    say(f"{len(files)} files with a grammar, {sum(file.size for file in files) >> 10} KiB")
    return asyncio.run(_measure(root, files))


def _files(root: Root) -> list[ScannedFile]:
    with Tree(root) as tree:
        batches = TreeScan(tree, ScanRules(2 << 20, NameRules())).batches()
        files = [file for batch in batches for file in batch.files]
    found = [f for f in files if f.language in RULES and f.path.partition("/")[0] in _TREES]
    assert found, f"no files in {root.path}: make corpora"
    return found


async def _measure(root: Root, files: Sequence[ScannedFile]) -> dict[str, dict[str, Any]]:
    grammars = Grammars()
    grammars.warm()
    gc.freeze()  # as a worker does: else our loop looks through a larger heap than the workers'
    seconds: dict[str, list[float]] = {"bare": [], "loop": [], "one": [], "two": []}
    one, two = (WorkerPool(WorkerOptions(count, 60.0, 2 << 30)) for count in (1, 2))
    one.start()
    two.start()
    try:
        for number in range(_ROUNDS + 1):
            round_seconds = {
                "bare": _bare(root, files, grammars),
                "loop": _loop(root, files, grammars),
                "one": await _pool(one, root, files),
                "two": await _pool(two, root, files),
            }
            for name, taken in round_seconds.items() if number else ():
                seconds[name].append(taken)  # the first round warms workers and caches
    finally:
        await one.close()
        await two.close()
    say(f"  load average {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    for name, times in seconds.items():
        say(f"  {name}: {statistics.median(times):.2f} s")
    two_to_loop = _rate(seconds, "two", "loop")
    return {
        "parse_two_workers_to_one_core": figure(
            two_to_loop, SCALING_GOAL, met=two_to_loop >= SCALING_GOAL
        ),
        "parse_one_worker_to_one_core": figure(_rate(seconds, "one", "loop")),
        "parse_two_workers_to_tree_sitter_alone": figure(_rate(seconds, "two", "bare")),
        "parse_one_core_to_tree_sitter_alone": figure(_rate(seconds, "loop", "bare")),
        "parse_files_per_second": figure(len(files) / statistics.median(seconds["two"])),
    }


def _rate(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """Returns the rate of one way over that of another: the median of the rounds' ratios."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def _bare(root: Root, files: Sequence[ScannedFile], grammars: Grammars) -> float:
    started = time.perf_counter()
    for file in files:
        data = (Path(root.path) / file.path).read_bytes()
        grammars.parser(file.language).parse(data)
    return time.perf_counter() - started


def _loop(root: Root, files: Sequence[ScannedFile], grammars: Grammars) -> float:
    started = time.perf_counter()
    with Tree(root) as tree:
        for index, file in enumerate(files):
            outcome = parse_file(tree, FileToParse(index, file.path), _LIMITS, grammars)
            convert.outcome_message(index, outcome).SerializeToString()
    return time.perf_counter() - started


async def _pool(pool: WorkerPool, root: Root, files: Sequence[ScannedFile]) -> float:
    started = time.perf_counter()
    answers = 0
    for start in range(0, len(files), _CALL_FILES):
        part = files[start : start + _CALL_FILES]
        jobs = tuple(FileToParse(index, file.path) for index, file in enumerate(part))
        async for _ in pool.parse(ParseJob((root,), "", _LIMITS, jobs)):
            answers += 1
    assert answers == len(files)
    return time.perf_counter() - started


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(Path(folder))) + "\n")
