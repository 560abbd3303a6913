"""Loads a model where it belongs: native engines in a process of their own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.embed.backends.loading import load
from services.embed.backends.protocol import LoadedModel
from services.embed.hosting.life import LoadRequest
from services.embed.hosting.process import EngineProcess
from services.embed.sources import FolderSource, RemoteSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.embed.settings import EmbedSettings
    from services.embed.sources import Source


async def load_hosted(
    source: Source, settings: EmbedSettings, tell: Callable[[bool], None]
) -> LoadedModel:
    """Returns a model that is ready to run.

    What is plain Python runs in this process: it can raise, but neither crash nor hang in a native
    call. A remote model does so whatever is set: how its provider is doing would not get through.
    `tell` is called, by a thread, with whether the engine serves.

    Raises:
        StartError: it does not load; the message says what to do.
    """
    isolated = not isinstance(source, RemoteSource) and (
        settings.isolation == "process"
        or (settings.isolation == "auto" and isinstance(source, FolderSource))
    )
    if not isolated:
        return await load(source, settings)
    engine = EngineProcess(
        LoadRequest(source, settings, settings.engine_memory_bytes),
        hang_seconds=settings.hang_seconds,
        rebuild_seconds=settings.rebuild_seconds,
        load_seconds=settings.load_seconds,
        tell=tell,
    )
    try:
        encoder = await asyncio.to_thread(engine.wait_until_loaded)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(engine.close))
        raise
    return LoadedModel(engine, encoder)
