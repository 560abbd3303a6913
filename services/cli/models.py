"""The models of the embed service, as `lodestone status` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

    from lodestone.embed.v1.model_service_pb2 import Model

_CALL_SECONDS = 5.0
_MOST_MODELS = 1000
_STATES = ("unknown", "loading", "ready", "failed")


def list_models(address: str) -> list[dict[str, Any]]:
    """Returns the models of a service as JSON, the default one first; empty when it is silent."""
    import grpc

    from services.cli.channels import open_channel

    try:
        with open_channel(address) as channel:
            return ask_models(channel)
    except grpc.RpcError:
        return []


def ask_models(channel: grpc.Channel, seconds: float = _CALL_SECONDS) -> list[dict[str, Any]]:
    """As `list_models`; raises RpcError."""
    from lodestone.embed.v1.model_service_pb2 import ListModelsRequest
    from lodestone.embed.v1.model_service_pb2_grpc import ModelServiceStub

    answer = ModelServiceStub(channel).ListModels(
        ListModelsRequest(page_size=_MOST_MODELS), timeout=seconds
    )
    models = sorted(answer.models, key=lambda model: (not model.is_default, model.name))
    return [_as_json(model) for model in models]


def default_model(models: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns what is told of the model that serves where none is named."""
    keys = ("name", "backend", "precision", "dimensions", "fingerprint")
    for model in models:
        if model["default"] and model["state"] == "ready":
            return {key: model[key] for key in keys}
    return None


def print_models(models: list[dict[str, Any]]) -> None:
    """Prints a table of models, and why those that failed did."""
    import click

    from services.cli.listing import print_table

    header = ("model", "state", "backend", "precision", "dimensions", "share", "queued tokens")
    rows = [
        (
            f"{model['name']}{' (default)' if model['default'] else ''}",
            model["state"],
            model["backend"],
            model["precision"],
            str(model["dimensions"] or ("reranker" if model.get("reranks") else "")),
            str(model["share"]),
            f"{model['queued_tokens']:,}" if model["state"] == "ready" else "",
        )
        for model in models
    ]
    print_table(header, rows)
    for model in models:
        if model["error"]:
            click.echo(f"{model['name']}: {model['error']}")


def _as_json(model: Model) -> dict[str, Any]:
    return {
        "name": model.name.removeprefix("models/"),
        "default": model.is_default,
        "state": _STATES[model.state] if model.state < len(_STATES) else _STATES[0],
        "backend": model.backend,
        "precision": model.precision,
        "dimensions": model.dimensions,
        "reranks": model.reranks,
        "matryoshka_dimensions": list(model.matryoshka_dimensions),
        "fingerprint": model.fingerprint,
        "share": model.share,
        "queued_tokens": model.queued_tokens,
        "error": model.error.message,
    }
