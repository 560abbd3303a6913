"""One write in a process of its own, whose one thread that writes can be traced and hurt.

Imported by the fork server alone besides the tests: each write starts from there in milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.io.changes import NewFile, WriteRequest, WrittenFile
from services.io.edit_journal import DiskJournal
from services.io.model import Root, SymlinkPolicy
from services.io.origins import Origins
from services.io.root_file import RootFile
from services.io.root_rules import RootRules
from services.io.roots import Roots
from services.io.writer import Writer, WriteRules
from tests.unit.io.writing import MAX_FILE_BYTES, replacing, request, writable_root

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

OLD, NEW = b"old content\n" * 100, b"new content, longer\n" * 100
REQUEST_ID = "7f1f2b9c-2d3c-4a87-9d2f-0a1b2c3d4e5f"
TWO_FILES = ("file", "sub/other")
TOLD = "/told"
"""A path that the traced thread asks for when the caller has been told of success."""


def asked_for(kind: str) -> WriteRequest:
    """Returns an edit of `file`, the creation of another one over it, or that of `a/b/file`.

    Kind `two` edits two files of two folders in one request.
    """
    if kind == "two":
        changes = (replacing(name, OLD, NEW) for name in TWO_FILES)
        return request(*changes, request_id=REQUEST_ID)
    if kind == "edit":
        return request(replacing("file", OLD, NEW), request_id=REQUEST_ID)
    if kind == "overwrite":
        return request(NewFile("file", NEW, overwrite=True), request_id=REQUEST_ID)
    return request(NewFile("a/b/file", NEW, create_parents=True), request_id=REQUEST_ID)


def write_once(pipe: Connection, kind: str, top: str, state: str) -> None:
    """Tells the id of its thread, waits to be told to go, writes, and tells the outcome.

    Kind `root` adds a root instead; the others are those of `asked_for`.
    """
    with ThreadPoolExecutor(1) as executor:
        pipe.send(executor.submit(threading.get_native_id).result())
        pipe.recv()
        pipe.send(asyncio.run(_write(executor, kind, top, state)))


def _create_root(top: str, state: str) -> None:
    roots = Roots([], RootRules((top,)), RootFile(state))
    roots.create(Root("added", f"{top}/sub", SymlinkPolicy.DENY))
    os.access(TOLD, os.F_OK)


async def _write(executor: ThreadPoolExecutor, kind: str, top: str, state: str) -> Any:
    if kind == "root":
        executor.submit(_create_root, top, state).result()
        return "written"
    journal = DiskJournal(Path(state))
    rules = WriteRules(MAX_FILE_BYTES)
    writer = Writer(writable_root(Path(top)), journal, Origins(), executor, rules)
    try:
        outcomes = await writer.write(asked_for(kind))
    except Exception as error:  # noqa: BLE001 - told to the test
        return getattr(error, "reason", repr(error))
    told = [
        "written" if isinstance(outcome, WrittenFile) else outcome.reason for outcome in outcomes
    ]
    if set(told) == {"written"}:
        executor.submit(os.access, TOLD, os.F_OK).result()
    return told if kind == "two" else told[0]
