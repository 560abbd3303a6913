"""What `lodestone doctor` says of the versions of services."""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from services.cli.doctor_deployment import Deployment, deployment_checks
from services.runtime.exits import StartError
from services.runtime.health import Health

if TYPE_CHECKING:
    from pathlib import Path

OWN = importlib.metadata.version("lodestone")


async def _told(folder: Path, versions: dict[str, str]) -> str:
    """Returns what the check says of services that run these versions."""
    servers, addresses = [], {}
    for name, version in versions.items():
        health = Health(())
        health._version = version
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        addresses[name] = f"unix:{folder / name}"
        server.add_insecure_port(addresses[name])
        await server.start()
        servers.append(server)
    try:
        return await asyncio.to_thread(deployment_checks(Deployment(addresses))["versions"])
    finally:
        for server in servers:
            await server.stop(None)


async def test_services_of_one_version_are_well(tmp_path: Path) -> None:
    assert await _told(tmp_path, {"io": OWN, "indexer": OWN}) == OWN


async def test_a_service_of_another_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"^indexer runs 0.0.9, and this command is {OWN}: "):
        await _told(tmp_path, {"io": OWN, "indexer": "0.0.9"})
