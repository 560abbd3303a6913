"""How long a forward may take before its engine is taken as hung."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from services.embed.backends.protocol import EngineLostError
from services.embed.hosting.life import LoadRequest
from services.embed.hosting.patience import Patience
from services.embed.hosting.process import EngineProcess
from services.embed.model import ModelId
from tests.unit.embed.harness import ids_of, settings_of
from tests.unit.embed.poison import HANGS, PoisonedSource

_HANG_SECONDS = 2.0
_FROZEN_SECONDS = 1.2


def test_a_machine_on_which_forwards_usually_take_long_is_given_longer() -> None:
    """Red when the setting alone counts: each large batch of such a machine ends its engine."""
    patience = Patience(_HANG_SECONDS)
    for tokens in (100, 200, 400):
        patience.note_answer(tokens, tokens * 0.01)

    assert patience.seconds(1000) == pytest.approx(200.0)
    assert patience.seconds(1) == _HANG_SECONDS


def test_short_texts_tell_nothing_of_long_ones() -> None:
    """Red when their time is spread over their few tokens: a hang lasts for minutes."""
    patience = Patience(_HANG_SECONDS)
    for _ in range(100):
        patience.note_answer(4, 0.004)

    assert patience.seconds(1000) == _HANG_SECONDS


@pytest.mark.slow
async def test_an_engine_that_was_frozen_once_is_still_found_to_hang() -> None:
    """Red when one slow answer makes the rate: a text that hangs is waited for many minutes."""
    request = LoadRequest(PoisonedSource(ModelId("hashing"), 384), settings_of(), 0)
    engine = EngineProcess(
        request,
        hang_seconds=_HANG_SECONDS,
        rebuild_seconds=20.0,
        load_seconds=60.0,
        tell=lambda _serving: None,
    )
    try:
        await asyncio.to_thread(engine.wait_until_loaded)
        os.kill(engine.pid, signal.SIGSTOP)
        slow = asyncio.create_task(asyncio.to_thread(engine.infer, [ids_of("short")]))
        await asyncio.sleep(_FROZEN_SECONDS)
        os.kill(engine.pid, signal.SIGCONT)
        await slow
        started = time.monotonic()
        with pytest.raises(EngineLostError) as lost:
            async with asyncio.timeout(10 * _HANG_SECONDS):
                await asyncio.to_thread(engine.infer, [ids_of(HANGS + " long" * 1000)])
    finally:
        await asyncio.to_thread(engine.close)

    assert lost.value.hung
    assert time.monotonic() - started < 5 * _HANG_SECONDS
