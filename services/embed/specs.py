"""Which models the settings name, and which of those that callers name may be loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from services.embed.model import ModelId, ModelSpec
from services.embed.settings import EmbedSettings
from services.embed.sources import BUNDLED, expanded, resolve_source
from services.runtime.errors import InvalidRequestError
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

_NAMES: Final = (BUNDLED, "hashing")
_PREFIXES: Final = ("hashing:", "openai:")
_VARIABLE = "LODESTONE_EMBED_MODEL="
_EXTRA_VARIABLE = "LODESTONE_EMBED_EXTRA_MODELS"
_RERANKER_VARIABLE = "LODESTONE_EMBED_RERANKER="
_RERANKING_BACKENDS: Final = ("openvino", "torch")


def specs_of(settings: EmbedSettings) -> list[ModelSpec]:
    """Returns the models that the settings name, the first one first and the reranker last.

    Raises:
        StartError: a model is unknown, or two have one id; the message names the variable.
    """
    first = _spec(resolve_source(settings).model_id, _canonical(settings.model), settings)
    specs = [replace(first, matryoshka_dimensions=_ordered(settings.matryoshka_dimensions))]
    for item in settings.extra_models:
        name, source = item.split("=", 1)
        if any(spec.model_id == name for spec in specs):
            raise StartError(ExitCode.MODEL, f"{_EXTRA_VARIABLE}: two models are named {name}.")
        try:
            resolve_source(settings.model_copy(update={"model": source, "model_id": name}))
        except StartError as error:
            what = error.message.removeprefix(_VARIABLE)
            raise StartError(error.code, f"{_EXTRA_VARIABLE}, {name}={what}") from None
        specs.append(_spec(ModelId(name), _canonical(source), settings))
    if settings.reranker:
        specs.append(_reranker(settings, {spec.model_id for spec in specs}))
    return specs


def _reranker(settings: EmbedSettings, taken: Container[ModelId]) -> ModelSpec:
    """Returns the reranker that the settings name. Raises StartError."""
    folder = str(expanded(settings.reranker).resolve())
    backend = settings.backend if settings.backend in _RERANKING_BACKENDS else "auto"
    asked = {"model": folder, "model_id": "", "backend": backend}
    try:
        name = resolve_source(settings.model_copy(update=asked)).model_id
    except StartError as error:
        what = error.message.removeprefix(_VARIABLE).partition(" It may be")[0]
        raise StartError(error.code, f"{_RERANKER_VARIABLE}{what}") from None
    if name in taken:
        raise StartError(
            ExitCode.MODEL,
            f"{_RERANKER_VARIABLE}{folder}: another model is named {name}; rename the folder.",
        )
    return replace(_spec(name, folder, settings), backend=backend, reranks=True)


def settings_for(spec: ModelSpec, settings: EmbedSettings) -> EmbedSettings:
    """Returns the settings under which a model is loaded."""
    return settings.model_copy(
        update={
            "model": spec.source,
            "model_id": spec.model_id,
            "backend": spec.backend,
            "precision": spec.precision,
        }
    )


def admitted(
    asked: ModelSpec, settings: EmbedSettings, loaded: ModelSpec | None = None
) -> ModelSpec:
    """Returns what a caller asked for, with what it left open as it is loaded, or as set.

    A source that is not ours to load is refused in one way, whether it exists or not: a caller
    learns nothing of the file system beyond the folders in `model_dirs`.

    Raises:
        InvalidRequestError: the source may not be loaded, or the backend or precision is unknown.
    """
    for field in ("backend", "precision"):
        allowed = get_args(EmbedSettings.model_fields[field].annotation)
        if getattr(asked, field) not in {"", *allowed}:
            raise InvalidRequestError(
                f"There is no such {field}.",
                metadata={field: f"must be empty or one of {', '.join(allowed)}"},
            )
    source = _admitted_source(asked.source, settings.model_dirs)
    if asked.reranks and _is_name(source):
        raise InvalidRequestError(
            "A reranker is a folder.", metadata={"source": "must be a cross-encoder's folder"}
        )
    usual = loaded or _spec(asked.model_id, source, settings)
    spec = ModelSpec(
        asked.model_id,
        source,
        asked.backend or usual.backend,
        asked.precision or usual.precision,
        asked.share or usual.share,
        _ordered(asked.matryoshka_dimensions) or usual.matryoshka_dimensions,
        asked.reranks,
    )
    try:
        resolve_source(settings_for(spec, settings))
    except StartError:
        raise _refusal() from None
    return spec


def _spec(model_id: ModelId, source: str, settings: EmbedSettings) -> ModelSpec:
    shares = dict(item.split("=", 1) for item in settings.model_shares)
    return ModelSpec(
        model_id,
        source,
        settings.backend,
        settings.precision,
        int(shares.get(model_id, 1)),
    )


def _canonical(source: str) -> str:
    return source if _is_name(source) else str(expanded(source).resolve())


def _ordered(sizes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(sizes)))


def _is_name(source: str) -> bool:
    return source in _NAMES or source.startswith(_PREFIXES)


def _admitted_source(source: str, folders: Sequence[Path]) -> str:
    """Returns a name as it is, and a folder as its real path when that is beneath an allowed one.

    Nothing outside is looked at before that is decided by the letters of the path alone.
    """
    if _is_name(source):
        return source
    for folder in folders if "\0" not in source else ():
        root = os.path.realpath(folder)
        for base in (str(folder), root):
            wanted = os.path.normpath(os.path.join(base, source))  # noqa: PTH118 - by letters
            if not Path(wanted).is_relative_to(base):
                continue
            real = os.path.realpath(wanted)
            if Path(real).is_relative_to(root) and os.path.isdir(real):  # noqa: PTH112 - as above
                return real
    raise _refusal()


def _refusal() -> InvalidRequestError:
    return InvalidRequestError(
        "This is no source that may be loaded here.",
        metadata={
            "source": f"must be {BUNDLED}, hashing, hashing:DIMENSIONS, the name of a remote "
            "model, or a model's folder beneath LODESTONE_EMBED_MODEL_DIRS"
        },
    )
