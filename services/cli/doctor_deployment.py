"""Checks of services elsewhere, by their addresses: whether they serve, know us, fit together."""

from __future__ import annotations

import importlib.metadata
import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli.channels import (
    TLS_CA_FILE,
    TLS_CERT_FILE,
    TLS_KEY_FILE,
    TOKEN_FILE,
    is_forwarded,
    open_channel,
)
from services.cli.doctor_database import database_checks
from services.cli.doctor_limits import check_limits
from services.cli.tokens import ACCEPTED
from services.runtime.addresses import is_local
from services.runtime.exits import ExitCode, StartError
from services.runtime.health import VERSION_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_SECONDS = 5.0
_PAGE_SIZE = 1000
_ABOUT = {"io": "list its roots", "embed": "list its models", "indexer": "list its workspaces"}


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the services of a deployment listen; empty for those that are not looked at."""

    addresses: Mapping[str, str]
    database_url: str = ""
    tls_name: str = ""
    """Whom certificates must name of services at ports of this machine that are forwarded, with
    `{service}` for each service's name; empty where none is forwarded."""

    @property
    def named(self) -> bool:
        """Whether there is anything to look at."""
        return any(self.addresses.values()) or bool(self.database_url)


@dataclass(frozen=True, slots=True)
class Target:
    """A service that is looked at."""

    service: str
    address: str
    tls_name: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return is_local(self.address) and not is_forwarded(self.address, self.tls_name)

    def open(self) -> grpc.Channel:
        """Returns a channel to it."""
        return open_channel(self.address, tls_name=self.tls_name)


def deployment_checks(deployment: Deployment) -> dict[str, Callable[[], str]]:
    """Returns the checks by name."""
    checks: dict[str, Callable[[], str]] = {}
    targets = {
        name: Target(name, address, deployment.tls_name.replace("{service}", name))
        for name, address in deployment.addresses.items()
        if address
    }
    for name, target in targets.items():
        checks[name] = partial(_health, target)
        checks[f"{name} access"] = partial(_access, target)
    if targets:
        checks["versions"] = lambda: _versions(targets)
    if any(target.is_here for target in targets.values()):
        checks["limits"] = check_limits  # of other machines nobody here can tell
    if "indexer" in targets:
        checks["workspaces"] = lambda: _workspaces(targets["indexer"])
    if "embed" in targets:
        checks["model"] = lambda: _model(targets["embed"])
    if deployment.database_url:
        tokens = any(os.environ.get(name) for name in (TOKEN_FILE, ACCEPTED))
        checks.update(database_checks(deployment.database_url, tokens=tokens))
    return checks


def _health(target: Target) -> str:
    status, _ = _checked(target)
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise StartError(
            ExitCode.UNAVAILABLE,
            f"{target.address} answers and does not serve: it starts, stops, or waits for its "
            "model or database; see its log "
            f"(kubectl logs -l app.kubernetes.io/name=lodestone-{target.service}).",
        )
    return f"serves at {target.address}"


def _checked(target: Target) -> tuple[int, str]:
    """Returns the status of a service, and its version, empty where it tells none."""
    with target.open() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with _told(target):
            answer, call = stub.Check.with_call(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
    told = dict(call.trailing_metadata() or ())
    return answer.status, str(told.get(VERSION_KEY, ""))


def _versions(targets: Mapping[str, Target]) -> str:
    """Compares versions of services with that of this command; of replicas one is asked."""
    own = importlib.metadata.version("lodestone")
    others = {name: _checked(target)[1] for name, target in targets.items()}
    strange = [f"{name} runs {told or 'none'}" for name, told in others.items() if told != own]
    if strange:
        raise StartError(
            ExitCode.FAILED,
            f"{', '.join(strange)}, and this command is {own}: finish the roll-over, or use the "
            "command of the services' version.",
        )
    return own


def _workspaces(target: Target) -> str:
    """Asks whether embed serves the model with which each workspace is searched."""
    from lodestone.indexer.v1.maintenance_service_pb2_grpc import MaintenanceServiceStub
    from services.cli.workspace_models import NOT_SERVED, SERVING, models_of

    with target.open() as channel:
        with _told(target):
            names = _names_of_workspaces(channel)
        models = MaintenanceServiceStub(channel)
        with _told(target, denied=f"models of workspaces are for admins; set {TOKEN_FILE}"):
            lacking = {
                name: f"{model.model} ({SERVING[model.serving]})"
                for name in names
                for model in models_of(models, name, _SECONDS)
                if model.active and model.serving in NOT_SERVED
            }
    if lacking:
        name, named = next(iter(lacking.items()))
        raise StartError(
            ExitCode.MODEL,
            f"{len(lacking)} of {len(names)} are searched with a model that embed does not serve, "
            f"{name} with {named}: serve it (LODESTONE_EMBED_MODEL, LODESTONE_EMBED_EXTRA_MODELS), "
            "or add one that is served (`lodestone models add`) and activate it.",
        )
    return f"{len(names)}, all with a model that is served"


@contextmanager
def _told(target: Target, *, denied: str = "") -> Iterator[None]:
    """Says why a call to a service failed, and what to do.

    Args:
        target: the service.
        denied: what is to be done where the token does not suffice; a scope, if not given.
    """
    try:
        yield
    except grpc.RpcError as error:
        code = error.code()
        if code in _UNREACHED:
            raise StartError(ExitCode.UNAVAILABLE, _unreachable(target, code)) from None
        hint = _HINTS.get(code, "see its log")
        if denied and code is grpc.StatusCode.PERMISSION_DENIED:
            hint = denied
        raise StartError(ExitCode.FAILED, f"{code.name}: {hint}.") from None


_UNREACHED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_HINTS = {
    grpc.StatusCode.UNAUTHENTICATED: f"set {TOKEN_FILE} to a file with a token that it accepts",
    grpc.StatusCode.PERMISSION_DENIED: (
        "its token lacks a scope: `lodestone token list` tells which it has"
    ),
    grpc.StatusCode.UNIMPLEMENTED: "another version, or another service, listens there",
}


def _unreachable(target: Target, code: grpc.StatusCode) -> str:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"{target.address} does not answer in {_SECONDS:.0f} s: check policies and firewalls."
        )
    hint = "check the name, the port, and that the service runs"
    if is_forwarded(target.address, target.tls_name):
        hint += f"; its certificate must name {target.tls_name} (--tls=NAME says otherwise)"
    if target.is_here and not target.address.startswith("unix:"):
        hint += "; a port that is forwarded to a service with TLS needs --tls"
    elif not target.is_here:
        hint += (
            f"; it speaks TLS: {TLS_CA_FILE} names who signs certificates, and where clients need "
            f"one of their own, {TLS_CERT_FILE} and {TLS_KEY_FILE} name it"
        )
    return f"{target.address} cannot be reached: {hint}."


def _access(target: Target) -> str:
    """Makes one call that reads, with the token that this command has."""
    with target.open() as channel, _told(target):
        _CALLS[target.service](channel)
    return f"may {_ABOUT[target.service]}"


def _list_roots(channel: grpc.Channel) -> object:
    from lodestone.io.v1 import root_service_pb2, root_service_pb2_grpc

    stub = root_service_pb2_grpc.RootServiceStub(channel)
    return stub.ListRoots(root_service_pb2.ListRootsRequest(page_size=1), timeout=_SECONDS)


def _list_models(channel: grpc.Channel) -> object:
    from lodestone.embed.v1 import model_service_pb2, model_service_pb2_grpc

    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    return stub.ListModels(model_service_pb2.ListModelsRequest(page_size=1), timeout=_SECONDS)


def _names_of_workspaces(channel: grpc.Channel) -> list[str]:
    from lodestone.indexer.v1 import workspace_service_pb2, workspace_service_pb2_grpc

    stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
    request = workspace_service_pb2.ListWorkspacesRequest(page_size=_PAGE_SIZE)
    names: list[str] = []
    while True:
        page = stub.ListWorkspaces(request, timeout=_SECONDS)
        names += [workspace.name for workspace in page.workspaces]
        if not page.next_page_token:
            return names
        request.page_token = page.next_page_token


def _list_workspaces(channel: grpc.Channel) -> object:
    from lodestone.indexer.v1 import workspace_service_pb2, workspace_service_pb2_grpc

    stub = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
    request = workspace_service_pb2.ListWorkspacesRequest(page_size=1)
    return stub.ListWorkspaces(request, timeout=_SECONDS)


_CALLS: dict[str, Callable[[grpc.Channel], object]] = {
    "io": _list_roots,
    "embed": _list_models,
    "indexer": _list_workspaces,
}


def _model(target: Target) -> str:
    from services.cli.models import ask_models, default_model

    with target.open() as channel, _told(target):
        models = ask_models(channel, _SECONDS)
    found = default_model(models)
    failed = [model for model in models if model["state"] == "failed"]
    if failed:
        named = failed[0]
        raise StartError(ExitCode.MODEL, f"{named['name']} does not load: {named['error']}")
    if found is None:
        raise StartError(
            ExitCode.MODEL, "No model is ready: wait until it is loaded, or see embed's log."
        )
    return f"{found['name']}, {found['dimensions']} dimensions, {found['fingerprint'][:12]}"
