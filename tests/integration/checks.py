"""Damages an index on purpose, and asks what a check finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from lodestone.indexer.v1 import maintenance_service_pb2 as maintenance_pb2
from lodestone.indexer.v1 import maintenance_service_pb2_grpc as maintenance_grpc

if TYPE_CHECKING:
    from tests.integration.indexing import Indexing

NODE = "(SELECT id FROM nodes WHERE qualified_name = 'parse_body')"


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
