"""Whether a live index has caught up with its tree."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import asyncpg
from blake3 import blake3

if TYPE_CHECKING:
    from pathlib import Path

_HELD = """
SELECT f.path, encode(f.digest, 'hex') FROM files f JOIN workspaces w ON w.id = f.workspace_id
WHERE w.name = $1 AND NOT EXISTS (SELECT 1 FROM nodes n
  WHERE n.workspace_id = f.workspace_id AND n.file_id = f.id AND n.status <> 'embedded')
"""
_POLL_SECONDS = 0.03


def on_disk(folder: Path) -> dict[str, str]:
    """Returns the digest of every file, by path."""
    return {
        path.relative_to(folder).as_posix(): blake3(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


async def caught_up(url: str, workspace: str, folder: Path, timeout_seconds: float = 20.0) -> float:
    """Returns after how many seconds the index held what the disk holds, every node embedded.

    Fails when it does not in time. Whoever calls this has stopped writing: so no later look at the
    disk is needed, and what the index held in between is not asked.
    """
    expected = await asyncio.to_thread(on_disk, folder)
    started = time.monotonic()
    connection = await asyncpg.connect(url, timeout=5)
    try:
        while True:
            held = {row[0]: row[1] for row in await connection.fetch(_HELD, workspace)}
            if held == expected:
                return time.monotonic() - started
            wrong = sorted(set(held.items()) ^ set(expected.items()))
            assert time.monotonic() - started < timeout_seconds, wrong[:10]
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        await connection.close()
