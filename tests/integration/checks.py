"""Damages an index on purpose, and asks what a check finds."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from lodestone.indexer.v1 import maintenance_service_pb2 as maintenance_pb2
from lodestone.indexer.v1 import maintenance_service_pb2_grpc as maintenance_grpc
from tests.integration.indexing import indexing
from tests.integration.samples import write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

NODE = "(SELECT id FROM nodes WHERE qualified_name = 'parse_body')"


@asynccontextmanager
async def indexed_tree(roots: Path, sockets: Path, url: str, hook: Hook) -> AsyncIterator[Indexing]:
    """Yields services with an indexed tree, whose forwards are counted from then on."""
    write_tree(roots / "tree")
    async with indexing(roots, sockets, url, embed=hook.app) as running:
        await running.create("tree", "tree")
        await running.succeed("tree")
        hook.calls.clear()
        yield running


async def check_index(services: Indexing, **fields: Any) -> list[tuple[str, str, str]]:
    """Returns kind, path and name of all that disagrees."""
    stub = maintenance_grpc.MaintenanceServiceStub(services.channel)
    request = maintenance_pb2.CheckIndexRequest(parent="workspaces/tree", **fields)
    return [
        (found.kind, found.path, found.qualified_name)
        async for response in stub.CheckIndex(request)
        for found in response.disagreements
    ]


async def damage_rows(services: Indexing, *statements: str) -> None:
    """Changes rows behind the services; each statement must find some."""
    connection = await asyncpg.connect(services.url)
    for statement in statements:
        assert not (await connection.execute(statement)).endswith(" 0"), statement
    await connection.close()
