"""The models of workspaces: listed, compared, added, activated, removed."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import grpc

from lodestone.indexer.v1 import maintenance_service_pb2 as models_pb2
from lodestone.indexer.v1.maintenance_service_pb2_grpc import MaintenanceServiceStub
from services.cli.indexer import Indexer
from services.cli.listing import print_table
from services.cli.models import list_models, print_models
from services.cli.rpc_errors import explain
from services.cli.stack import Stack
from services.cli.trees import check_workspace_id
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CALL_SECONDS = 60.0
_COMPARE_SECONDS = 1800.0
_PAGE_SIZE = 1000
SERVING = ("unknown", "ready", "not served", "other weights")
"""What is said of `Serving`, by its numbers."""

NOT_SERVED = (models_pb2.SERVING_ABSENT, models_pb2.SERVING_OTHER_FINGERPRINT)
"""A search with such a model fails; of an unknown one it is not known."""


@dataclass(frozen=True, slots=True)
class ModelsOptions:
    """What the command line asks of `models`."""

    root: Path
    """Data folder."""
    workspace: str
    compare: bool
    questions: int
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Services:
    indexer: Indexer
    models: MaintenanceServiceStub
    embed_address: str

    def workspaces(self, wanted: str) -> list[str]:
        """Returns resource names: the one of a workspace that is wanted, else all."""
        if wanted:
            return [f"workspaces/{check_workspace_id(wanted)}"]
        return [workspace.name for workspace in self.indexer.list_workspaces()]

    def of(self, workspace: str) -> list[models_pb2.WorkspaceModel]:
        """Returns the models of a workspace."""
        return models_of(self.models, workspace, _CALL_SECONDS)


def models_of(
    stub: MaintenanceServiceStub, workspace: str, seconds: float
) -> list[models_pb2.WorkspaceModel]:
    """Returns the models of a workspace; raises RpcError."""
    request = models_pb2.ListWorkspaceModelsRequest(parent=workspace, page_size=_PAGE_SIZE)
    return list(stub.ListWorkspaceModels(request, timeout=seconds).models)


def show_models(options: ModelsOptions) -> ExitCode:
    """Prints the models of workspaces and those that embed serves, or how they compare."""
    with _services(options.root) as services:
        names = services.workspaces(options.workspace)
        shown = [
            {"workspace": name.removeprefix("workspaces/")} | _of_workspace(services, name, options)
            for name in names
        ]
        served = list_models(services.embed_address)
    if options.as_json:
        click.echo(json.dumps({"workspaces": shown, "served": served}))
        return ExitCode.OK
    for each in shown:
        click.secho(each["workspace"], bold=True)
        _print_models(each["models"])
        if options.compare:
            _print_comparison(each["comparison"])
    click.secho("served by embed", bold=True)
    print_models(served)
    return ExitCode.OK


def add_model(root: Path, workspace: str, model: str, *, as_json: bool) -> ExitCode:
    """Adds a model to a workspace, and tells how far it is."""
    request = models_pb2.AddWorkspaceModelRequest(parent=_parent(workspace), model=_model(model))
    with _services(root) as services:
        added = services.models.AddWorkspaceModel(request, timeout=_CALL_SECONDS).model
    left = f"{added.nodes_pending:,} of {added.nodes_total:,} nodes wait for it"
    return _tell(added, f"{model} is added to {workspace}: {left}.", as_json=as_json)


def activate_model(
    root: Path, workspace: str, model: str, fingerprint: str, *, force: bool, as_json: bool
) -> ExitCode:
    """Switches search over to a model."""
    request = models_pb2.ActivateWorkspaceModelRequest(
        parent=_parent(workspace), model=_model(model), fingerprint=fingerprint, force=force
    )
    with _services(root) as services:
        active = services.models.ActivateWorkspaceModel(request, timeout=_CALL_SECONDS).model
    return _tell(active, f"Search in {workspace} uses {model} now.", as_json=as_json)


def remove_model(
    root: Path, workspace: str, model: str, fingerprint: str, *, as_json: bool
) -> ExitCode:
    """Drops a model of a workspace."""
    request = models_pb2.RemoveWorkspaceModelRequest(
        parent=_parent(workspace), model=_model(model), fingerprint=fingerprint
    )
    with _services(root) as services:
        services.models.RemoveWorkspaceModel(request, timeout=_CALL_SECONDS)
    if as_json:
        click.echo(json.dumps({"removed": model}))
    else:
        click.echo(f"{model} is removed from {workspace}.")
    return ExitCode.OK


def _of_workspace(services: _Services, name: str, options: ModelsOptions) -> dict[str, Any]:
    found: dict[str, Any] = {"models": [model_json(model) for model in services.of(name)]}
    if options.compare:
        request = models_pb2.CompareWorkspaceModelsRequest(parent=name, questions=options.questions)
        answer = services.models.CompareWorkspaceModels(request, timeout=_COMPARE_SECONDS)
        found["comparison"] = comparison_json(answer)
    return found


def model_json(model: models_pb2.WorkspaceModel) -> dict[str, Any]:
    """Returns a model of a workspace as JSON."""
    return {
        "model": model.model.removeprefix("models/"),
        "active": model.active,
        "fingerprint": model.fingerprint,
        "dimensions": model.dimensions,
        "nodes": {
            "total": model.nodes_total,
            "embedded": model.nodes_embedded,
            "pending": model.nodes_pending,
            "failed": model.nodes_failed,
        },
        "vector_bytes": model.vector_bytes,
        "texts_per_second": round(model.texts_per_second, 1),
        "serving": SERVING[model.serving],
    }


def comparison_json(answer: models_pb2.CompareWorkspaceModelsResponse) -> dict[str, Any]:
    """Returns how models compare as JSON."""
    return {
        "questions": answer.questions,
        "comments": answer.comments,
        "scores": [
            {
                "model": score.model.removeprefix("models/"),
                "fingerprint": score.fingerprint,
                "mrr_at_10": round(score.mrr_at_10, 4),
                "recall_at_10": round(score.recall_at_10, 4),
                "query_milliseconds": round(score.query_duration.ToNanoseconds() / 1e6, 2),
                "search_milliseconds": round(score.search_duration.ToNanoseconds() / 1e6, 2),
            }
            for score in answer.scores
        ],
        "left_out": [name.removeprefix("models/") for name in answer.left_out],
    }


def _print_models(models: list[dict[str, Any]]) -> None:
    header = ("model", "embedded", "pending", "failed", "dimensions", "MiB", "texts/s", "embed")
    rows = [
        (
            f"{model['model']}{' (active)' if model['active'] else ''}",
            *(f"{model['nodes'][name]:,}" for name in ("embedded", "pending", "failed")),
            str(model["dimensions"]),
            f"{model['vector_bytes'] / 2**20:,.1f}",
            f"{model['texts_per_second']:,.1f}" if model["texts_per_second"] else "",
            model["serving"],
        )
        for model in models
    ]
    print_table(header, rows)


def _print_comparison(found: dict[str, Any]) -> None:
    names = found["questions"] - found["comments"]
    click.echo(f"{found['questions']:,} questions: {found['comments']:,} comments, {names:,} names")
    rows = [
        (
            score["model"],
            f"{score['mrr_at_10']:.3f}",
            f"{score['recall_at_10']:.3f}",
            f"{score['query_milliseconds']:.1f} ms",
            f"{score['search_milliseconds']:.1f} ms",
        )
        for score in found["scores"]
    ]
    print_table(("model", "MRR@10", "recall@10", "question", "search"), rows)
    for name in found["left_out"]:
        click.secho(f"{name} is left out: embed does not serve it.", fg="yellow")


def _tell(model: models_pb2.WorkspaceModel, text: str, *, as_json: bool) -> ExitCode:
    click.echo(json.dumps(model_json(model)) if as_json else text)
    return ExitCode.OK


def _parent(workspace: str) -> str:
    return f"workspaces/{check_workspace_id(workspace)}"


def _model(name: str) -> str:
    return f"models/{name.removeprefix('models/')}"


@contextmanager
def _services(root: Path) -> Iterator[_Services]:
    processes = Stack(root, os.environ).ensure().processes
    indexer = Indexer(processes["indexer"].address)
    try:
        yield _Services(
            indexer, MaintenanceServiceStub(indexer.channel), processes["embed"].address
        )
    except grpc.RpcError as error:
        raise explain(error) from None
    finally:
        indexer.close()
