"""What it takes to watch a large tree: memory by the size of the tree, and after many changes.

Told are the memory for each file more, and that rounds of changes add nothing once the log of
events is full (it holds 10,000 here).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.figures import figure, say
from tests.bench.io_watch import hear, open_watch, service

FILES_PER_FOLDER = 100
SMALL = 20_000
LARGE = int(os.environ.get("LODESTONE_BENCH_WATCHED_FILES", "100000"))
ROUNDS, CHANGED = 10, 5_000
LOG_EVENTS = 2 * CHANGED
GROWTH_GOAL = 1.02
"""Most memory after all rounds, to that after the third, which found the log full."""


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the figures; `scratch` is an empty folder."""
    return asyncio.run(_measure(scratch))


async def _measure(scratch: Path) -> dict[str, dict[str, Any]]:
    begun: dict[int, int] = {}
    after: list[int] = []
    settings = {"LODESTONE_IO_WATCH_LOG_EVENTS": str(LOG_EVENTS)}
    for files in (SMALL, LARGE):
        top = scratch / f"tree-{files}"
        make_tree(top, files)
        async with service(scratch / f"service-{files}", top, settings) as (channel, pid):
            watch = await open_watch(channel)
            begun[files] = resident_bytes(pid)
            say(f"{files} files: {begun[files] >> 20} MiB when the watch began")
            if files == LARGE:
                for number in range(ROUNDS):
                    await hear(watch, change(top, number))
                    after.append(resident_bytes(pid))
                say("after each round: " + ", ".join(f"{size >> 20}" for size in after) + " MiB")
    growth = after[-1] / after[2]
    return {
        "watch_mebibytes_small": figure(begun[SMALL] / (1 << 20)),
        "watch_mebibytes_large": figure(begun[LARGE] / (1 << 20)),
        "watch_bytes_per_file": figure((begun[LARGE] - begun[SMALL]) / (LARGE - SMALL)),
        "watch_memory_after_changes": figure(growth, GROWTH_GOAL, met=growth <= GROWTH_GOAL),
    }


def make_tree(top: Path, files: int) -> None:
    """Makes a tree of empty files."""
    for number in range(0, files, FILES_PER_FOLDER):
        folder = top / f"part{number % 50}" / f"folder_{number}"
        folder.mkdir(parents=True)
        for index in range(FILES_PER_FOLDER):
            os.close(os.open(f"{folder}/module_{index}.py", os.O_CREAT | os.O_WRONLY, 0o644))


def change(top: Path, round_number: int) -> set[str]:
    """Writes to some files, others each time; returns their paths in the tree."""
    paths = set()
    for number in range(round_number * CHANGED, (round_number + 1) * CHANGED):
        start = number * FILES_PER_FOLDER % LARGE
        index = number // (LARGE // FILES_PER_FOLDER) % FILES_PER_FOLDER
        path = f"part{start % 50}/folder_{start}/module_{index}.py"
        with (top / path).open("a") as file:
            file.write("x = 1\n")
        paths.add(path)
    return paths


def resident_bytes(pid: int) -> int:
    """Returns what a process holds in memory now, its children aside."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(Path(folder))) + "\n")
