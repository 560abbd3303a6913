"""A workspace that has two models side by side, and what is asked of the second."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc

from lodestone.indexer.v1 import maintenance_service_pb2 as models_pb2
from lodestone.indexer.v1 import maintenance_service_pb2_grpc as models_grpc
from tests.integration.indexing import FINISHED, indexing
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

TREE = "workspaces/tree"
SMALL = "models/small"
BOTH = {"model": "hashing:64", "extra_models": "small=hashing:32"}


@contextlib.asynccontextmanager
async def two_models(
    roots: Path, sockets: Path, url: str, hook: Hook, nodes: int
) -> AsyncIterator[Indexing]:
    """Starts services with both models; a tree of many nodes is indexed with the first one."""
    write_many(roots / "tree", nodes, per_file=5)
    async with indexing(
        roots,
        sockets,
        url,
        embed=hook.app,
        embed_settings=BOTH,
        embed_batch_nodes=8,
        embed_batches_in_flight=1,
    ) as running:
        await running.create("tree", "tree")
        await running.succeed("tree")
        yield running
        hook.go_on.set()


def maintenance(services: Indexing) -> Any:
    """Returns the stub of models and checks."""
    return models_grpc.MaintenanceServiceStub(services.channel)


async def add_small(models: Any) -> models_pb2.WorkspaceModel:
    """Adds the second model; it may still be loading."""
    request = models_pb2.AddWorkspaceModelRequest(parent=TREE, model=SMALL)
    async with asyncio.timeout(20):
        while True:
            try:
                response: models_pb2.AddWorkspaceModelResponse = await models.AddWorkspaceModel(
                    request
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)
            else:
                return response.model


async def runs_ended(services: Indexing) -> None:
    """Returns once no run of the tree waits or is at work, those of its models among them."""
    async with asyncio.timeout(30):
        while any(run.state not in FINISHED for run in await services.list_runs("tree")):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
