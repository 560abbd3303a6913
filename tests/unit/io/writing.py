"""A writer over a folder, and requests to it."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from services.io.atomic import PutOptions
from services.io.changes import (
    Change,
    Durability,
    FileEdits,
    Outcome,
    Splice,
    WriteRequest,
    WrittenFile,
)
from services.io.content import file_digest
from services.io.edit_journal import DiskJournal, Journal
from services.io.memory_journal import MemoryJournal
from services.io.model import Root, SymlinkPolicy
from services.io.names import is_temporary
from services.io.origins import Origins
from services.io.roots import Roots
from services.io.temporaries import Sweeper
from services.io.writer import Writer, WriteRules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WAIT_SECONDS = 30.0
MAX_FILE_BYTES = 1 << 20


def writable_root(top: Path, policy: SymlinkPolicy = SymlinkPolicy.WITHIN_ROOT) -> Roots:
    """Returns a folder as the one root, `test`."""
    return Roots([Root("test", str(top), policy, read_only=False)])


@asynccontextmanager
async def opened_writer(
    top: Path | Roots,
    state: Path | None = None,
    *,
    journal: Journal | None = None,
    origins: Origins | None = None,
    threads: int = 8,
    rules: WriteRules | None = None,
) -> AsyncIterator[Writer]:
    """Yields a writer; its journal lies in `state`, or in memory."""
    roots = writable_root(top) if isinstance(top, Path) else top
    if journal is None:
        journal = DiskJournal(state / "edits") if state else MemoryJournal()
    with ThreadPoolExecutor(threads) as executor:
        writer = Writer(
            roots, journal, origins or Origins(), executor, rules or WriteRules(MAX_FILE_BYTES)
        )
        try:
            yield writer
        finally:
            await writer.close()


def edit(path: str, before: bytes, *splices: tuple[int, int, bytes]) -> FileEdits:
    """Returns edits of a file that must hold `before`."""
    digest = file_digest(before)
    return FileEdits(
        path,
        tuple(Splice(*splice, digest, position) for position, splice in enumerate(splices)),
    )


def replacing(path: str, before: bytes, after: bytes) -> FileEdits:
    """Returns the edit that replaces the whole of a file."""
    return edit(path, before, (0, len(before), after))


def request(
    *changes: Change,
    request_id: str = "",
    durability: Durability = Durability.STRONG,
    origin_id: str = "",
    directory: str = "",
    root: str = "roots/test",
) -> WriteRequest:
    """Returns a request under an id of its own; its fingerprint is of all it says."""
    return WriteRequest(
        request_id or str(uuid.uuid4()),
        file_digest(repr((changes, durability, origin_id, directory)).encode()),
        root,
        directory,
        changes,
        durability,
        origin_id,
    )


async def write(top: Path | Roots, *changes: Change, directory: str = "") -> list[Outcome]:
    """Returns what becomes of changes of a tree, by a writer of their own."""
    async with opened_writer(top) as writer:
        return await writer.write(request(*changes, directory=directory))


def put_options() -> PutOptions:
    """Returns how a file is put in place by itself."""
    return PutOptions(is_strong=False, origin_id="", origins=Origins(), sweeper=Sweeper())


def written(outcome: Outcome) -> WrittenFile:
    """Returns an outcome that must be a success."""
    assert isinstance(outcome, WrittenFile), outcome
    return outcome


def failed(outcome: Outcome, error: type[Exception]) -> None:
    """Asserts that an outcome is an error of this type."""
    assert isinstance(outcome, error), outcome


def temporary_files(top: Path) -> list[Path]:
    """Returns the temporary files in a tree."""
    return [path for path in top.rglob("*") if is_temporary(path.name)]


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until something holds, not for ever."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():  # noqa: ASYNC110 - files tell no event
            await asyncio.sleep(0.001)
