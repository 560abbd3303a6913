"""What `lodestone doctor` says of services: their versions, access and models."""

from __future__ import annotations

import asyncio
import importlib.metadata
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from lodestone.indexer.v1.workspace_service_pb2 import ListWorkspacesResponse, Workspace
from services.cli import doctor_deployment
from services.cli.doctor import run_doctor
from services.cli.doctor_deployment import Deployment, deployment_checks
from services.runtime.exits import ExitCode, StartError
from services.runtime.health import Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


@asynccontextmanager
async def _refusing(
    address: str, code: grpc.StatusCode | None, *, but: str = ""
) -> AsyncIterator[None]:
    """Serves an address: every call ends so, or is never answered for None.

    A method that `but` names has one workspace.
    """

    async def list_workspaces(_: bytes, __: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        workspaces = [Workspace(name="workspaces/team-a")]
        return ListWorkspacesResponse(workspaces=workspaces).SerializeToString()

    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if code is None:
            await asyncio.Event().wait()
        else:
            await context.abort(code, "no")

    class Refusing(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            listed = bool(but) and details.method.endswith(f"/{but}")
            return grpc.unary_unary_rpc_method_handler(list_workspaces if listed else refuse)

    server = grpc.aio.server(handlers=[Refusing()])
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


REFUSED = (
    (grpc.StatusCode.UNAUTHENTICATED, "^UNAUTHENTICATED: set LODESTONE_TOKEN_FILE to a file with"),
    (grpc.StatusCode.PERMISSION_DENIED, "^PERMISSION_DENIED: .* lacks a scope: .*token list"),
    (grpc.StatusCode.UNIMPLEMENTED, "^UNIMPLEMENTED: another version, or another service"),
    (grpc.StatusCode.UNAVAILABLE, "cannot be reached: check the name"),
    (grpc.StatusCode.INTERNAL, "^INTERNAL: see its log"),
    (None, "does not answer in .* s: check policies and firewalls"),
)
CHECKS = ("io access", "embed access", "indexer access", "model", "workspaces")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("code", "told"), REFUSED)
async def test_a_refused_call_is_told_with_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: str,
    code: grpc.StatusCode | None,
    told: str,
) -> None:
    """Red when a refusal is taken for no models."""
    monkeypatch.setattr(doctor_deployment, "_SECONDS", 0.3 if code is None else 5.0)
    address = f"unix:{tmp_path}/s"
    deployment = Deployment(dict.fromkeys(("io", "embed", "indexer"), address))
    async with _refusing(address, code):
        with pytest.raises(StartError, match=told):
            await asyncio.to_thread(deployment_checks(deployment)[check])


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "are for admins; set LODESTONE_TOKEN_FILE"),
        (grpc.StatusCode.UNAVAILABLE, "cannot be reached"),
    ],
)
async def test_models_of_workspaces_need_a_scope_of_their_own(
    tmp_path: Path, code: grpc.StatusCode, told: str
) -> None:
    """Red when every failure of the call is taken for a want of rights."""
    address = f"unix:{tmp_path}/s"
    check = deployment_checks(Deployment({"indexer": address}))["workspaces"]

    async with _refusing(address, code, but="ListWorkspaces"):
        with pytest.raises(StartError, match=told):
            await asyncio.to_thread(check)


def test_a_model_of_a_service_that_is_away_is_not_waited_for(tmp_path: Path) -> None:
    """Red when a service that cannot be reached has no model ready."""
    checks = deployment_checks(Deployment({"embed": f"unix:{tmp_path}/nobody"}))

    with pytest.raises(StartError, match="cannot be reached"):
        checks["model"]()


def test_limits_are_those_of_services_on_this_machine() -> None:
    """Red when a deployment has no check of limits, and when this machine's count for others'."""
    assert "limits" in deployment_checks(Deployment({"io": "unix:/s", "embed": "far:1"}))
    assert "limits" not in deployment_checks(Deployment({"io": "far:1"}, "postgresql:///x"))


def test_what_fails_for_one_reason_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Red when each check of a service that cannot be reached says it all again."""
    gone = Deployment({"io": "unix:/nowhere/io.sock"})

    ended = run_doctor(Path("/nowhere"), gone, as_json=False)

    lines = capsys.readouterr().out.splitlines()
    assert ended is ExitCode.FAILED
    assert "unix:/nowhere/io.sock cannot be reached" in lines[0]
    assert [line.split() for line in lines[1:3]] == [
        ["FAILED", "io", "access", "as", "io"],
        ["FAILED", "versions", "as", "io"],
    ]
