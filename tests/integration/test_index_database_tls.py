"""The database over TLS, as its URL says: whom it believes, and what it tells of whom it does not.

The server of tests speaks none, so a port before it does, as PostgreSQL would: it answers a
client's request for TLS, and passes on what comes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import pytest

from services.indexer.storage.database import Database
from services.runtime.exits import ExitCode, StartError
from tests.support.certificates import new_authority, write_certificates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_SSL_REQUEST_BYTES = 8
_CHUNK_BYTES = 1 << 16


class _Front:
    """Speaks TLS to clients, and plainly to the server that a URL names."""

    def __init__(self, url: str, certificate: Path, key: Path) -> None:
        self._url = urlsplit(url)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        """Those that spoke TLS to the end of its handshake."""

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        """Yields the port."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readexactly(_SSL_REQUEST_BYTES)
            writer.write(b"S")
            await writer.start_tls(self._context)
            self.connections += 1
            from_server, to_server = await self._connect()
            await asyncio.gather(_pass(reader, to_server), _pass(from_server, writer))
        writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        query = parse_qs(self._url.query)
        port = self._url.port or int(query.get("port", ["5432"])[0])
        if "host" in query:
            return await asyncio.open_unix_connection(f"{query['host'][0]}/.s.PGSQL.{port}")
        return await asyncio.open_connection(self._url.hostname, port)

    def url(self, port: int, **parameters: object) -> str:
        """Returns the URL of the database behind the port."""
        user = self._url.netloc.rpartition("@")[0]
        query = urlencode({name: str(value) for name, value in parameters.items()})
        place = f"{user}@127.0.0.1:{port}" if user else f"127.0.0.1:{port}"
        return urlunsplit(self._url._replace(netloc=place, query=query))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.close()


async def _why_not(url: str) -> str:
    with pytest.raises(StartError) as raised:
        await Database(url, connections=2, timeout_seconds=10).probe()
    assert raised.value.code == ExitCode.UNAVAILABLE
    return raised.value.message


async def test_a_server_is_verified_and_used(database_url: str, tmp_path: Path) -> None:
    files = write_certificates(tmp_path / "server", new_authority())
    front = _Front(database_url, files.certificate, files.key)
    async with front.serve() as port:
        url = front.url(port, sslmode="verify-full", sslrootcert=files.authorities)
        database = Database(url, connections=2, timeout_seconds=10)
        await database.open()
        try:
            async with database.connection() as connection:
                assert await connection.fetchval("SELECT 6 * 7") == 42
        finally:
            await database.close()

    assert front.connections >= 2  # one that probes, and those of the pool


async def test_a_server_that_another_authority_signed_is_told(
    database_url: str, tmp_path: Path
) -> None:
    """It was said to be no URL: the error of a certificate is a ValueError too."""
    files = write_certificates(tmp_path / "server", new_authority())
    other = write_certificates(tmp_path / "other", new_authority())
    front = _Front(database_url, files.certificate, files.key)
    async with front.serve() as port:
        why = await _why_not(front.url(port, sslmode="verify-full", sslrootcert=other.authorities))

    assert "certificate verify failed" in why
    assert front.connections == 0


async def test_a_server_of_another_name_is_told(database_url: str, tmp_path: Path) -> None:
    files = write_certificates(tmp_path / "server", new_authority(), names=("elsewhere",))
    front = _Front(database_url, files.certificate, files.key)
    async with front.serve() as port:
        why = await _why_not(front.url(port, sslmode="verify-full", sslrootcert=files.authorities))

    assert "certificate verify failed" in why
    assert "127.0.0.1" in why
