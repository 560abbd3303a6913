"""The proxy of the fault tests itself: what it leaves open fails whatever test comes next."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import FaultProxy

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("turns", range(12))
async def test_a_proxy_that_stops_while_its_clients_leave_closes_all_connections(
    tmp_path: Path, turns: int
) -> None:
    """Red when a connection is closed only after its pumps ended: stopping cancels that wait."""
    ended = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        while await reader.read(1):
            pass
        writer.close()
        ended.release()

    count = 20
    server = await asyncio.start_unix_server(answer, str(tmp_path / "target"))
    proxy = FaultProxy(tmp_path / "listen", tmp_path / "target")
    async with server:
        async with proxy.serving():
            clients = [
                await asyncio.open_unix_connection(str(tmp_path / "listen")) for _ in range(count)
            ]
            for reader, writer in clients:
                writer.write(b"1")
                assert await reader.readexactly(1) == b"1"
            for _, writer in clients:
                writer.transport.abort()
            for _ in range(turns):
                await asyncio.sleep(0)
        async with asyncio.timeout(5):
            for _ in range(count):
                await ended.acquire()
