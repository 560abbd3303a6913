"""Strong writes a second, against the bare calls that make the same bytes last.

The reference writes a temporary file, flushes it, renames it and flushes the folder: what anybody
must do. A second one leaves the folder's flush out, as most editors do. A write of the io service
reads, verifies and splices first, holds a lock, and notes the request on the disk besides. Each
round measures all in turn; only the ratios mean something.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3

from lodestone.io.v1 import edit_service_pb2, edit_service_pb2_grpc, snippet_service_pb2, tree_pb2
from services.io.changes import Durability, WrittenFile
from tests.bench.figures import figure, say
from tests.unit.io.harness import serve
from tests.unit.io.writing import opened_writer, replacing, request

FILE_BYTES = 8192
WRITES = 100
ROUNDS = 5
AT_ONCE = 8

Write = Callable[[str, bytes, bytes], Awaitable[None]]
"""Replaces the whole of a file, whose content is known."""


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the figures; `scratch` is an empty folder."""
    return asyncio.run(_measure(scratch))


async def _measure(scratch: Path) -> dict[str, dict[str, Any]]:
    top = scratch / "tree"
    top.mkdir()
    rates: dict[str, list[float]] = defaultdict(list)
    options = {"state_dir": str(scratch / "state")}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        async with (
            opened_writer(top, scratch / "other-state") as writer,
            serve(top, scratch / "s", **options) as channel,
        ):
            stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)

            async def bare(name: str, _: bytes, after: bytes) -> None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(threads, write_bare, top, name, after)

            async def no_folder(name: str, _: bytes, after: bytes) -> None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(threads, write_file, top, name, after)

            async def in_process(
                name: str, before: bytes, after: bytes, durability: Durability = Durability.STRONG
            ) -> None:
                asked = request(replacing(name, before, after), durability=durability)
                [outcome] = await writer.write(asked)
                assert isinstance(outcome, WrittenFile), outcome

            async def best_effort(name: str, before: bytes, after: bytes) -> None:
                await in_process(name, before, after, Durability.BEST_EFFORT)

            async def over_grpc(name: str, before: bytes, after: bytes) -> None:
                answer = await stub.ApplyEdits(edit_of(name, before, after))
                assert answer.results[0].HasField("edited"), answer

            ways: dict[str, Write] = {
                "bare": bare, "bare_without_folder": no_folder, "writer": in_process,
                "grpc": over_grpc, "best_effort": best_effort,
            }  # fmt: skip
            for number in range(ROUNDS):
                for name, write in ways.items():
                    rates[name].append(await rate(top, write, 1))
                    rates[f"{name}_at_once"].append(await rate(top, write, AT_ONCE))
                say(f"round {number}: " + ", ".join(f"{k} {v[-1]:.0f}/s" for k, v in rates.items()))
    return _figures(rates)


def _figures(rates: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    def ratio(name: str, reference: str) -> float:
        pairs = zip(rates[name], rates[reference], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    results: dict[str, dict[str, Any]] = {}
    for way in ("writer", "grpc"):
        for suffix in ("", "_at_once"):
            value = ratio(way + suffix, "bare" + suffix)
            results[f"strong_writes_{way}{suffix}_to_bare"] = figure(value, 0.33, met=value >= 0.33)
    for suffix in ("", "_at_once"):
        value = ratio(f"writer{suffix}", f"bare_without_folder{suffix}")
        results[f"strong_writes_writer{suffix}_to_bare_without_folder"] = figure(value)
    results["best_effort_to_strong"] = figure(ratio("best_effort", "writer"))
    for way, values in rates.items():
        results[f"{way}_writes_per_second"] = figure(statistics.median(values))
    return results


async def rate(top: Path, write: Write, at_once: int) -> float:
    """Returns writes a second; each writer at once has a file of its own."""
    count = WRITES // at_once
    for number in range(at_once):
        (top / f"f{number}").write_bytes(content_of(0))

    async def writes(name: str) -> None:
        for number in range(count):
            await write(name, content_of(number), content_of(number + 1))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(writes(f"f{number}"))
    return at_once * count / (time.perf_counter() - started)


def content_of(number: int) -> bytes:
    """Returns text of `FILE_BYTES` bytes."""
    return f"line {number:08}\n".encode() * (FILE_BYTES // 14)


def write_bare(top: Path, name: str, content: bytes) -> None:
    """Replaces a file so that it lasts, and does nothing else."""
    write_file(top, name, content)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(top: Path, name: str, content: bytes) -> None:
    """Replaces a file by one that is flushed; its name may not last."""
    temporary = top / f"{name}.bare"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(top / name)


def edit_of(name: str, before: bytes, after: bytes) -> edit_service_pb2.ApplyEditsRequest:
    """Returns the call that replaces the whole of a file."""
    ref = snippet_service_pb2.SnippetRef(
        path=name, end_byte=len(before), file_digest=blake3(before).digest()
    )
    return edit_service_pb2.ApplyEditsRequest(
        request_id=str(uuid.uuid4()),
        tree=tree_pb2.Tree(root="roots/test"),
        edits=[edit_service_pb2.Edit(ref=ref, replacement=after)],
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="io-writes-") as folder:
        sys.stdout.write(json.dumps(measure(Path(folder))) + "\n")
