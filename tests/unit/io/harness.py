"""The io service on a Unix socket, and trees opened as roots."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import grpc

from services.io.app import IoApp
from services.io.model import Root, SymlinkPolicy
from services.io.paths import Tree
from services.io.settings import IoSettings
from services.runtime.interceptors import CallInterceptor, Gate

NOBODY = 65534
MakeFiles = Callable[[Mapping[str, str | bytes]], Path]


def open_tree(
    top: Path,
    policy: SymlinkPolicy = SymlinkPolicy.WITHIN_ROOT,
    directory: str = "",
    *,
    waits: bool = True,
) -> Tree:
    """Opens a folder as a root of its own."""
    root = Root("test", str(top), policy)
    return Tree(root, directory, waits=waits)


def held_paths() -> list[str]:
    """Returns what the open descriptors of this process lead to."""
    found = []
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the list's own descriptor is in it
        with suppress(OSError):
            found.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    return found


@contextmanager
def unprivileged() -> Iterator[None]:
    """Runs the body without root's right to read everything; open what lies above before."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@asynccontextmanager
async def serve(top: Path, socket: Path, **options: object) -> AsyncIterator[grpc.aio.Channel]:
    """Runs the io service with the folder as root `test`; yields a channel to it."""
    async with serve_app(top, socket, **options) as (channel, _):
        yield channel


@asynccontextmanager
async def serve_app(
    top: Path, socket: Path, **options: object
) -> AsyncIterator[tuple[grpc.aio.Channel, IoApp]]:
    """As `serve`; yields the app as well."""
    settings = IoSettings(listen=f"unix:{socket}", roots=f"test={top}", **options)  # type: ignore[arg-type]
    app = IoApp(settings)
    gate = Gate(settings.max_concurrent_calls)
    gate.open = True
    server = grpc.aio.server(interceptors=[CallInterceptor("io.lodestone", gate)])
    app.register(server)
    server.add_insecure_port(settings.listen)
    await server.start()
    await app.start()
    try:
        async with grpc.aio.insecure_channel(settings.listen) as channel:
            yield channel, app
    finally:
        await server.stop(1)
        await app.close()
