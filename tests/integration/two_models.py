"""A workspace that has two models side by side, and what is asked of the second."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import maintenance_service_pb2 as models_pb2
from lodestone.indexer.v1 import maintenance_service_pb2_grpc as models_grpc
from tests.integration.indexing import FINISHED, indexing
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
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


async def activate(models: Any, name: str, **fields: Any) -> models_pb2.WorkspaceModel:
    """Has searches use a model of the tree."""
    request = models_pb2.ActivateWorkspaceModelRequest(
        parent=TREE, model=f"models/{name}", **fields
    )
    response: models_pb2.ActivateWorkspaceModelResponse = await models.ActivateWorkspaceModel(
        request
    )
    return response.model


async def remove(models: Any, name: str) -> None:
    """Takes a model from the tree."""
    await models.RemoveWorkspaceModel(
        models_pb2.RemoveWorkspaceModelRequest(parent=TREE, model=f"models/{name}")
    )


async def list_models(models: Any) -> dict[str, models_pb2.WorkspaceModel]:
    """Returns the models of the tree, by name."""
    response = await models.ListWorkspaceModels(models_pb2.ListWorkspaceModelsRequest(parent=TREE))
    return {item.model.removeprefix("models/"): item for item in response.models}


async def runs_of_models(services: Indexing) -> list[runs_pb2.IndexRun]:
    """Returns the runs of the tree that are of a model."""
    response = await services.runs.ListIndexRuns(runs_pb2.ListIndexRunsRequest(parent=TREE))
    return [run for run in response.index_runs if run.model]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns once a condition holds."""
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110 - what it waits for is in the database
            await asyncio.sleep(0.01)


async def complete(services: Indexing, models: Any) -> None:
    """Returns once no node waits for the second model, and no run does."""

    async def done() -> bool:
        listed = (await list_models(models)).get("small")
        runs = await runs_of_models(services)
        waits = any(not run.HasField("end_time") for run in runs)
        return listed is not None and not listed.nodes_pending and not waits

    await until(done)
