"""The pool of connections, and errors of the driver as errors of ours."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import stamina
from pgvector.asyncpg import register_vector

from services.indexer import metrics
from services.indexer.errors import DATABASE, DatabaseUnavailableError, DiskFullError
from services.indexer.storage.tenancy import restrict
from services.runtime.access import visible_workspaces
from services.runtime.errors import (
    DependencyUnavailableError,
    InvalidRequestError,
    LodestoneError,
)
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import TypeAlias

    Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy

T = TypeVar("T")

_LEAST_SERVER_VERSION = (16, 0)
_CONNECT_TIMEOUT_SECONDS = 10.0
_EXTENSION_LOCK_KEY = 0x10DE_570F
_TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
"""Parameters of a URL that name files; each has a variable as in libpq, e.g. PGSSLROOTCERT."""

# Errors that pass by themselves: the statement may be sent again on another connection.
# After the postmaster was killed, asyncpg raises InternalClientError too.
_TRANSIENT = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.QueryCanceledError,  # by an administrator, or a timeout of the server
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby, until clients are led to the other server
    asyncpg.InvalidCachedStatementError,  # a newer version changed the schema meanwhile
    # A login that is refused, as while passwords are changed or a backup is restored.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    OSError,  # refused, timed out, or no socket: the server restarts
)


_AFTER_COMMIT: dict[Connection, list[Callable[[], None]]] = {}
"""What waits for the commit of each transaction that is open."""


def after_commit(connection: Connection, work: Callable[[], None]) -> None:
    """Has `work` called when the connection's transaction is committed, and not if it is not.

    Args:
        connection: of `Database.transaction`.
        work: what is to be done outside of the database; it must not fail.
    """
    _AFTER_COMMIT[connection].append(work)


class Database:
    """A pool whose connections know pgvector's types; `open` it before use."""

    def __init__(
        self, url: str, *, connections: int, timeout_seconds: float, idle_seconds: float = 60.0
    ) -> None:
        self._url = url
        self._idle_seconds = idle_seconds
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._opened: asyncpg.Pool | None = None

    @property
    def _pool(self) -> asyncpg.Pool:
        assert self._opened is not None, "the database is opened before it is used"
        return self._opened

    async def probe(self) -> None:
        """Connects once, looks whether the server will do, and leaves again.

        Raises:
            StartError: the URL is wrong, the server does not answer, or it is too old.
        """
        try:
            first = await asyncpg.connect(self._url, timeout=_CONNECT_TIMEOUT_SECONDS)
        except (asyncpg.PostgresError, OSError, ValueError, asyncpg.InterfaceError) as error:
            raise StartError(ExitCode.UNAVAILABLE, _why_not_connected(error, self._url)) from None
        try:
            await _check_server(first)
        finally:
            await first.close()

    async def open(self) -> None:
        """Connects.

        Raises:
            StartError: as `probe`.
        """
        await self.probe()
        try:
            self._opened = await asyncpg.create_pool(
                self._url,
                min_size=2,
                max_size=self._connections,
                command_timeout=self._timeout_seconds,
                timeout=_CONNECT_TIMEOUT_SECONDS,
                init=_prepare,
                reset=_leave_as_it_is,
                # Bounded by number. By age, all that a process asks would be prepared anew, and
                # take its memory twice, every five minutes.
                max_cached_statement_lifetime=0,
                server_settings={
                    "application_name": "lodestone-indexer",
                    "jit": "off",
                    # Whoever writes terms here notes the nodes: see `storage.term_changes`.
                    "lodestone.notes_changes": "on",
                    # A process that is frozen or cut off in a transaction would keep its locks:
                    # whoever takes its run over would wait for it to wake up.
                    "idle_in_transaction_session_timeout": f"{self._idle_seconds * 1000:.0f}ms",
                },
            )
        except (asyncpg.PostgresError, OSError) as error:
            raise StartError(ExitCode.UNAVAILABLE, _why_not_connected(error, self._url)) from None
        metrics.POOL_CONNECTIONS_LIMIT.set(self._connections)

    async def close(self) -> None:
        """Closes every connection, those in use last."""
        if self._opened is None:
            return
        try:
            async with asyncio.timeout(5):
                await self._opened.close()
        except TimeoutError:
            self._opened.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Yields a connection outside a transaction, for single statements.

        For a caller of some workspaces it is one inside a transaction that reads these alone.
        """
        if visible_workspaces() is not None:
            async with self.transaction() as connection:
                yield connection
            return
        with _translated():
            async with self._acquired() as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Yields a connection inside a transaction: all of the block is committed, or nothing."""
        with _translated():
            async with self._acquired() as connection:
                work = _AFTER_COMMIT[connection] = []
                try:
                    async with connection.transaction():
                        await _restrict_to_caller(connection)
                        yield connection
                finally:
                    del _AFTER_COMMIT[connection]
                for each in work:
                    each()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """Yields a connection whose statements all see one state; it writes nothing."""
        with _translated():
            async with (
                self._acquired() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                await _restrict_to_caller(connection)
                yield connection

    @asynccontextmanager
    async def alone(self, key: int) -> AsyncIterator[Connection | None]:
        """Yields a connection that holds an advisory lock, or None while another process does.

        The lock is the session's: for work that no transaction can hold together.
        """
        async with self.connection() as connection:
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", key):
                yield None
                return
            unlocked = False
            try:
                yield connection
            finally:
                try:
                    await connection.fetchval("SELECT pg_advisory_unlock($1)", key)
                    unlocked = True
                finally:
                    if not unlocked:  # then it ends with the session
                        connection.terminate()

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Connection]:
        """Yields a connection of the pool; counts it, and what was waited for it."""
        started = time.perf_counter()
        acquiring = self._pool.acquire(timeout=_CONNECT_TIMEOUT_SECONDS)
        try:
            connection = await acquiring.__aenter__()
        finally:
            metrics.POOL_WAIT_SECONDS.observe(time.perf_counter() - started)
        with metrics.POOL_CONNECTIONS_USED.track_inprogress():
            try:
                yield connection
            except asyncpg.ReadOnlySQLTransactionError:
                connection.terminate()  # where it leads to cannot be written, and stays so
                raise
            finally:
                await acquiring.__aexit__(None, None, None)


async def _restrict_to_caller(connection: Connection) -> None:
    patterns = visible_workspaces()
    if patterns is not None:
        await restrict(connection, patterns)


class _translated:  # noqa: N801 - reads as a statement
    """Turns the driver's errors into ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        if isinstance(error, asyncpg.DiskFullError):
            metrics.DATABASE_ERRORS.labels("disk_full").inc()
            raise DiskFullError("The database's disk is full.") from error
        if isinstance(error, asyncpg.InvalidRegularExpressionError):
            metrics.DATABASE_ERRORS.labels("bad_value").inc()
            raise InvalidRequestError(
                "The globs of paths are too long together for the database."
            ) from error
        if isinstance(error, asyncpg.DataError):
            metrics.DATABASE_ERRORS.labels("bad_value").inc()
            raise InvalidRequestError(
                "A value cannot be stored: it holds a NUL, or a number is too large."
            ) from error
        if isinstance(error, _TRANSIENT) and not isinstance(error, LodestoneError):
            metrics.DATABASE_ERRORS.labels("unavailable").inc()
            raise DatabaseUnavailableError(
                "The database does not answer.",
                metadata={"dependency": DATABASE},
                retry_after_seconds=1.0,
            ) from error


async def retry_transient(work: Callable[[], Awaitable[T]], *, patience_seconds: float = 30.0) -> T:
    """Returns what `work` returns, called again while the database does not answer.

    `work` must be idempotent: a commit whose answer was lost is sent again.
    """
    async for attempt in stamina.retry_context(
        on=DependencyUnavailableError,
        attempts=None,
        timeout=patience_seconds,
        wait_initial=0.1,
        wait_max=2.0,
    ):
        with attempt:
            return await work()
    raise AssertionError("stamina ends with a result or an error")


async def _prepare(connection: asyncpg.Connection) -> None:
    await register_vector(connection)


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """Spares each statement a second one, by which the pool would reset the session.

    Settings are changed inside transactions alone, and `alone` gives its lock back.
    """


async def _check_server(connection: asyncpg.Connection) -> None:
    version = connection.get_server_version()
    if (version.major, version.minor) < _LEAST_SERVER_VERSION:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"The database is PostgreSQL {version.major}; Lodestone needs 16 or newer.",
        )
    try:
        await _add_extension(connection)
    except asyncpg.PostgresError as error:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"The database has no pgvector extension ({error}). Install pgvector 0.8.6 or newer, "
            'and let a superuser run "CREATE EXTENSION vector" in this database.',
        ) from None


async def _add_extension(connection: asyncpg.Connection) -> None:
    if await connection.fetchval("SELECT true FROM pg_extension WHERE extname = 'vector'"):
        return
    # Two processes that start at once would both try, and one would fail.
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({_EXTENSION_LOCK_KEY})")
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")


def _why_not_connected(error: BaseException, url: str) -> str:
    hint = "Check LODESTONE_DATABASE_URL, or unset it to use the embedded PostgreSQL."
    # That a certificate is not believed is an error of the system and, to Python, of a value.
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return f"LODESTONE_DATABASE_URL is not a PostgreSQL URL. {hint}"
    text = _unreadable_file(url) or str(error) or type(error).__name__
    return f"Cannot connect to the database: {text}. {hint}"


def _unreadable_file(url: str) -> str:
    """Tells which file of a URL's TLS cannot be read, if any: the driver's error names none."""
    named = dict(parse_qsl(urlsplit(url).query))
    for parameter in _TLS_FILES:
        path = named.get(parameter) or os.environ.get(f"PG{parameter.upper()}")
        if path:
            try:
                Path(path).open("rb").close()
            except OSError as error:
                return f"{parameter} names {path}, which cannot be read ({error.strerror})"
    return ""
