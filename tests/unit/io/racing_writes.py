"""Writes that race with those of other processes; imported by the fork server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from services.io.changes import NewFile, WrittenFile
from services.io.errors import ContentChangedError, PathExistsError
from tests.unit.io.writing import opened_writer, replacing, request

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def append_lines(pipe: Connection, top: str, state: str, name: str, count: int) -> None:
    """Appends lines of its own to `log`, each by an edit of what it just read."""
    pipe.recv()
    asyncio.run(_append(Path(top), Path(state) if state else None, name, count))


async def _append(top: Path, state: Path | None, name: str, count: int) -> None:
    async with opened_writer(top, state) as writer:
        number = 0
        while number < count:
            before = (top / "log").read_bytes()
            after = before + f"{name} {number}\n".encode()
            [outcome] = await writer.write(request(replacing("log", before, after)))
            assert isinstance(outcome, (WrittenFile, ContentChangedError)), outcome
            number += isinstance(outcome, WrittenFile)


def create_files(pipe: Connection, top: str, state: str, name: str, count: int) -> None:
    """Creates files that others create too; each that it won it notes in `won-<name>`."""
    pipe.recv()
    asyncio.run(_create(Path(top), Path(state), name, count))


async def _create(top: Path, state: Path, name: str, count: int) -> None:
    won: list[str] = []
    async with opened_writer(top, state) as writer:
        for number in range(count):
            new = NewFile(f"deep/{number % 3}/{number}", name.encode(), create_parents=True)
            [outcome] = await writer.write(request(new))
            assert isinstance(outcome, (WrittenFile, PathExistsError)), outcome
            if isinstance(outcome, WrittenFile):
                won.append(new.path)
    (top / f"won-{name}").write_text("\n".join(won))
