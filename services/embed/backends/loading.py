"""Loads a model with the backend that suits it and this machine."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from services.embed.backends.converted import OFFLINE, ensure_converted
from services.embed.backends.hashing import load_hashing
from services.embed.backends.memory import memory_errors_told
from services.embed.backends.protocol import OutOfMemoryError
from services.embed.sources import HashingSource, RemoteSource
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.embed.backends.protocol import LoadedModel
    from services.embed.settings import EmbedSettings
    from services.embed.sources import FolderSource, Source

_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
"""What is there where there is a driver: containers need not show the first, and WSL has the last
alone."""


async def load(source: Source, settings: EmbedSettings) -> LoadedModel:
    """Returns a model that is ready to run.

    Raises:
        StartError: it does not load; the message says what to do.
    """
    if isinstance(source, HashingSource):
        return load_hashing(source.dimensions, max_text_chars=settings.max_text_chars)
    if isinstance(source, RemoteSource):
        return await _load_remote(source, settings)
    if settings.backend == "torch" or (
        settings.backend == "auto" and await asyncio.to_thread(has_gpu)
    ):
        return await asyncio.to_thread(_load_torch, source, settings)
    folder = await ensure_converted(
        source.folder,
        cache_dir=settings.cache_dir,
        model_id=source.model_id,
        timeout_seconds=settings.convert_timeout_seconds,
        reranks=source.reranks,
    )
    return await asyncio.to_thread(_load_converted, folder, settings)


def _load_converted(folder: Path, settings: EmbedSettings) -> LoadedModel:
    # Imported where it is used: the other backends do without OpenVINO.
    from services.embed.backends.openvino import load_openvino  # noqa: PLC0415

    try:
        with memory_errors_told():
            return load_openvino(
                folder,
                precision=settings.precision,
                streams=settings.streams,
                threads=settings.threads,
                token_budget=settings.token_budget,
                max_text_chars=settings.max_text_chars,
            )
    except (StartError, OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - each file has a reader that raises its own
        raise StartError(
            ExitCode.MODEL,
            f"The converted model does not load ({type(error).__name__}). To have it converted "
            f"again, remove the folder {folder}.",
        ) from None


async def _load_remote(source: RemoteSource, settings: EmbedSettings) -> LoadedModel:
    # Imported where it is used: the other backends do without an HTTP client.
    from services.embed.backends.remote.abandoning import start  # noqa: PLC0415
    from services.embed.backends.remote.backend import load_remote  # noqa: PLC0415

    loaded: Future[LoadedModel] = Future()
    # A provider that is asked for the size and does not answer holds up no stop.
    start(
        partial(
            load_remote,
            source.endpoint,
            token_budget=settings.token_budget,
            max_text_chars=settings.max_text_chars,
        ),
        loaded,
    )
    return await asyncio.wrap_future(loaded)


def has_gpu() -> bool:
    """Tells whether torch finds a GPU; without a driver it is not asked, as that is its import.

    Raises StartError when there is one that does not answer.
    """
    if not any(map(os.path.exists, _DRIVERS)):
        return False
    if importlib.util.find_spec("torch") is None:
        return False
    from services.embed.backends.torch_device import device_of_choice  # noqa: PLC0415

    with _torch_errors_told():
        return device_of_choice() == "cuda"


@contextlib.contextmanager
def _torch_errors_told() -> Iterator[None]:
    """Raises what torch says of a device, or of the lack of memory, as StartError."""
    try:
        with memory_errors_told():
            yield
    except OutOfMemoryError:
        raise StartError(
            ExitCode.MODEL,
            "There is too little memory for the model; where torch finds a GPU, on that.",
        ) from None
    except RuntimeError as error:
        raise StartError(
            ExitCode.MODEL,
            f"The model does not run with torch ({type(error).__name__}: {_first_line(error)}).",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _load_torch(source: FolderSource, settings: EmbedSettings) -> LoadedModel:
    if importlib.util.find_spec("torch") is None:
        raise StartError(ExitCode.MODEL, "The torch backend needs the package torch.")
    os.environ.update(OFFLINE)
    from services.embed.backends.cross_encoder import load_torch_reranker  # noqa: PLC0415
    from services.embed.backends.sentence_transformers import load_torch  # noqa: PLC0415
    from services.embed.backends.suitability import UnsupportedModelError  # noqa: PLC0415

    limits = {"token_budget": settings.token_budget, "max_text_chars": settings.max_text_chars}
    try:
        with _torch_errors_told():
            if source.reranks:
                return load_torch_reranker(source.folder, precision=settings.precision, **limits)
            return load_torch(
                source.folder,
                precision=settings.precision,
                attention=settings.torch_attention,
                graphs=settings.cuda_graphs,
                **limits,
            )
    except (UnsupportedModelError, OSError, ValueError) as error:
        raise StartError(
            ExitCode.MODEL,
            f"The model does not load: {_first_line(error)}. The model is {source.folder}.",
        ) from None
