"""Loads a model with the backend that suits it and this machine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from typing import TYPE_CHECKING

from services.embed.backends.converted import OFFLINE, ensure_converted
from services.embed.backends.hashing import load_hashing
from services.embed.sources import HashingSource, RemoteSource
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from services.embed.backends.protocol import LoadedModel
    from services.embed.settings import EmbedSettings
    from services.embed.sources import FolderSource, Source

_NVIDIA_DRIVER = "/proc/driver/nvidia/version"


async def load(source: Source, settings: EmbedSettings) -> LoadedModel:
    """Returns a model that is ready to run.

    Raises:
        StartError: it does not load; the message says what to do.
    """
    if isinstance(source, HashingSource):
        return load_hashing(source.dimensions, max_text_chars=settings.max_text_chars)
    if isinstance(source, RemoteSource):
        return await asyncio.to_thread(_load_remote, source, settings)
    if settings.backend == "torch" or (settings.backend == "auto" and has_gpu()):
        return await asyncio.to_thread(_load_torch, source, settings)
    folder = await ensure_converted(
        source.folder,
        cache_dir=settings.cache_dir,
        model_id=source.model_id,
        timeout_seconds=settings.convert_timeout_seconds,
    )
    # Imported where it is used: the other backends do without OpenVINO.
    from services.embed.backends.openvino import load_openvino  # noqa: PLC0415

    return await asyncio.to_thread(
        load_openvino,
        folder,
        precision=settings.precision,
        streams=settings.streams,
        threads=settings.threads,
        token_budget=settings.token_budget,
        max_text_chars=settings.max_text_chars,
    )


def _load_remote(source: RemoteSource, settings: EmbedSettings) -> LoadedModel:
    # Imported where it is used: the other backends do without an HTTP client.
    from services.embed.backends.remote.backend import load_remote  # noqa: PLC0415

    return load_remote(
        source.endpoint,
        token_budget=settings.token_budget,
        max_text_chars=settings.max_text_chars,
    )


def has_gpu() -> bool:
    """Tells whether an NVIDIA driver runs; asking torch would cost its import."""
    return os.path.exists(_NVIDIA_DRIVER)  # noqa: PTH110 - a Path of /proc wins nothing


def _load_torch(source: FolderSource, settings: EmbedSettings) -> LoadedModel:
    if importlib.util.find_spec("torch") is None:
        raise StartError(ExitCode.MODEL, "The torch backend needs the package torch.")
    os.environ.update(OFFLINE)
    from services.embed.backends.pipeline import UnsupportedModelError  # noqa: PLC0415
    from services.embed.backends.sentence_transformers import load_torch  # noqa: PLC0415

    try:
        return load_torch(
            source.folder,
            precision=settings.precision,
            attention=settings.torch_attention,
            token_budget=settings.token_budget,
            max_text_chars=settings.max_text_chars,
        )
    except (UnsupportedModelError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise StartError(
            ExitCode.MODEL, f"The model {source.folder} does not load: {reason[0]}"
        ) from None
