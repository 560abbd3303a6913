"""Remote models: what a dead provider costs its neighbours, and how much of a limit is used.

The provider is a real HTTP server on loopback that answers with vectors from hashes, hangs, or
fails. Rates with and without it are measured in turns.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.embed.app import EmbedApp
from services.embed.backends.hashing import HashingBackend
from services.embed.backends.remote.rate_limit import BURST_SHARE
from services.embed.specs import specs_of
from services.runtime.errors import LodestoneError
from tests.bench.figures import figure, say
from tests.support.embeddings_api import Step, serving_embeddings
from tests.unit.embed.harness import DOCUMENT, remote_model, served, settings_of

if TYPE_CHECKING:
    from services.embed.backends.protocol import LoadedModel
    from services.embed.serving import ServedModel
    from tests.support.embeddings_api import EmbeddingsApi

_ROUNDS = 5
_ROUND_SECONDS = 1.0
_TEXTS = [f"def function_{n}(value): return value + {n}" for n in range(64)]
_CALLS_AT_ONCE = 8
_LEAST_SHARE = 0.9
_MOST_FAIL_MILLISECONDS = 5.0
_REQUESTS_PER_MINUTE = 600
_LIMITED_SECONDS = 10.0
_MINUTE_SECONDS = 60.0


def measure(_scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the share of its rate that a model keeps beside a dead one, and more."""
    return asyncio.run(_measure())


async def _measure() -> dict[str, dict[str, Any]]:
    with serving_embeddings() as api:
        shares, waits = await _beside_a_dead_one(api)
    with serving_embeddings() as api:
        used = await asyncio.to_thread(_used_share, api)
    share, wait = statistics.median(shares), statistics.median(waits) * 1000
    say(f"rate beside a dead model {share:.2f}, failing takes {wait:.2f} ms, limit used {used:.2f}")
    return {
        "remote_dead_neighbour_share": figure(share, _LEAST_SHARE, met=share >= _LEAST_SHARE),
        "remote_fail_fast_ms": figure(
            wait, _MOST_FAIL_MILLISECONDS, met=wait <= _MOST_FAIL_MILLISECONDS
        ),
        "remote_limit_used_share": figure(used, 1.0, met=0.8 <= used <= 1.0),
    }


async def _beside_a_dead_one(api: EmbeddingsApi) -> tuple[list[float], list[float]]:
    """Returns shares of the rate alone, by round, and the seconds of calls that fail fast."""
    settings = settings_of()
    app = EmbedApp(settings)
    (spec,) = specs_of(settings)
    dead = app.serve(_load(api), spec)
    api.always = Step(status=503)
    shares: list[float] = []
    waits: list[float] = []
    async with served(HashingBackend()) as model:
        for _ in range(_ROUNDS):
            alone = await _rate(model)
            async with asyncio.TaskGroup() as tasks:
                asking = [tasks.create_task(_ask_on(dead, waits)) for _ in range(_CALLS_AT_ONCE)]
                shares.append(await _rate(model) / alone)
                for task in asking:
                    task.cancel()
    await dead.close()
    await app.close()
    return shares, waits


async def _rate(model: ServedModel) -> float:
    """Returns texts a second of calls one after another."""
    started = time.perf_counter()
    texts = 0
    while time.perf_counter() < started + _ROUND_SECONDS:
        texts += len(await model.embed(_TEXTS, DOCUMENT))
    return texts / (time.perf_counter() - started)


async def _ask_on(dead: ServedModel, waits: list[float]) -> None:
    """Asks a dead model again and again, as a caller with a short patience does."""
    while True:
        started = time.perf_counter()
        with suppress(LodestoneError):
            await dead.embed(_TEXTS[:4], DOCUMENT)
        waits.append(time.perf_counter() - started)
        await asyncio.sleep(0.1)


def _used_share(api: EmbeddingsApi) -> float:
    """Returns the requests that went, over the most that no minute of the limit forbids."""
    model = _load(api, remote_requests_per_minute=_REQUESTS_PER_MINUTE)
    (ids,) = model.encoder.encode(_TEXTS[:1], DOCUMENT.truncation)
    batch = [ids.ids]  # type: ignore[union-attr]
    started, done = time.perf_counter(), 0
    while time.perf_counter() < started + _LIMITED_SECONDS:
        model.backend.infer(batch)
        done += 1
    seconds = time.perf_counter() - started
    model.backend.close()
    at_once = _REQUESTS_PER_MINUTE * BURST_SHARE
    return done / (at_once + (_REQUESTS_PER_MINUTE - at_once) / _MINUTE_SECONDS * seconds)


def _load(api: EmbeddingsApi, **fields: Any) -> LoadedModel:
    return remote_model(api.url, model="openai:bench", **fields)


def main() -> None:
    """Measures and ends with one line of JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(measure(Path(scratch))) + "\n")


if __name__ == "__main__":
    main()
