"""Texts through the model, also when one of them is what brings the model down."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from services.indexer.errors import BatchRefusedError
from services.indexer.model import Failure
from services.runtime.errors import DependencyUnavailableError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from services.indexer.embed_client import EmbedClient, Vector
    from services.indexer.model import EmbedModel
    from services.indexer.patience import Patience

_OVERLOADED = "RESOURCE_EXHAUSTED"
_AWAY = "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
_TIMED_OUT = "DEADLINE_EXCEEDED"
_DEATHS_IN_COMPANY = 2
"""Times that a batch may fail beside others, before it is tried alone."""

_DEATHS_ALONE = 2
"""Times that a single text may fail while nothing else runs, before it is the one to blame."""

_PARTLY_AWAY_SECONDS = 1.0
"""Time to wait when some texts of a call were not embedded as the model went away."""


class _DeathError(Exception):
    """A call to which no answer came, in place of one that says why there is none."""

    def __init__(self, error: DependencyUnavailableError) -> None:
        super().__init__(str(error))
        self.error = error


class ForwardGate:
    """Lets calls of a process run side by side, or one suspect call alone."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._running = 0
        self._suspects = 0
        self._alone = False

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Yields while no suspect runs or waits."""
        while self._alone or self._suspects:
            await self._changed.wait()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._wake()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Yields while no other call runs."""
        self._suspects += 1
        try:
            while self._alone or self._running:
                await self._changed.wait()
            self._alone = True
        finally:
            self._suspects -= 1
            self._wake()
        try:
            yield
        finally:
            self._alone = False
            self._wake()

    def _wake(self) -> None:
        """Wakes all who wait now; each looks at the state anew."""
        self._changed.set()
        self._changed = asyncio.Event()


class Forwards:
    """Embeds texts with an outcome for each, whatever one of them does to the service.

    A service that goes away is waited for, and the same texts are sent again. A batch that goes
    down with it twice is sent alone, then in halves, until the text that does it stands alone; the
    others are embedded. A service that says itself that it cannot serve now, because its engine or
    a provider is away, or as it is overloaded or stops, has come to no harm by a text: whatever it
    did not embed is sent again, for as long as a dependency is waited for.
    """

    def __init__(self, embed: EmbedClient, gate: ForwardGate, patience: Patience) -> None:
        self._embed = embed
        self._gate = gate
        self._patience = patience

    async def embed(self, model: EmbedModel, texts: Sequence[str]) -> list[Vector | Failure]:
        """Returns a vector per text, or why there is none, in their order.

        Raises:
            DependencyUnavailableError: embed stayed away for too long.
            PayloadMismatchError: embed broke the contract.
        """
        results: list[Vector | Failure] = []
        for start in range(0, len(texts), model.max_batch_texts):
            part = texts[start : start + model.max_batch_texts]
            results += await self._embed_part(model, part)
        return results

    async def _embed_part(self, model: EmbedModel, texts: Sequence[str]) -> list[Vector | Failure]:
        for _ in range(_DEATHS_IN_COMPANY):
            try:
                return await self._call(self._gate.shared, model, texts)
            except BatchRefusedError as error:
                if len(texts) == 1:
                    return [error.failure]
                break
            except _DeathError as death:
                await self._wait_until_back(model, death.error)
        return await self._embed_suspects(model, texts)

    async def _embed_suspects(
        self, model: EmbedModel, texts: Sequence[str]
    ) -> list[Vector | Failure]:
        """Embeds texts while nothing else runs, so that what goes wrong is their doing."""
        failure = None
        for _ in range(_DEATHS_ALONE if len(texts) == 1 else 1):
            try:
                return await self._call(self._gate.alone, model, texts)
            except BatchRefusedError as error:
                failure = error.failure
                break
            except _DeathError as death:
                failure = _blame(death.error)
                await self._wait_until_back(model, death.error)
        assert failure is not None
        if len(texts) == 1:
            get_logger().warning("text_given_up", reason=failure.reason)
            return [failure]
        half = len(texts) // 2
        first = await self._embed_suspects(model, texts[:half])
        return first + await self._embed_suspects(model, texts[half:])

    async def _call(
        self,
        gate: Callable[[], AbstractAsyncContextManager[None]],
        model: EmbedModel,
        texts: Sequence[str],
    ) -> list[Vector | Failure]:
        """Calls embed until it has told of every text; nobody waits at the gate meanwhile.

        Raises:
            _DeathError: the service did not answer, or not in time: one of the texts may be why.
            DependencyUnavailableError: it said for too long that it cannot serve.
        """
        results: dict[int, Vector | Failure] = {}

        async def call() -> DependencyUnavailableError | None:
            left = [place for place in range(len(texts)) if place not in results]
            try:
                async with gate():
                    found = await self._embed.embed_documents(model, [texts[at] for at in left])
            except DependencyUnavailableError as error:
                if error.metadata.get("code") == _OVERLOADED or "reason" in error.metadata:
                    raise
                return error
            away = None
            for place, result in zip(left, found, strict=True):
                if isinstance(result, Failure) and result.reason == _AWAY:
                    away = result
                else:
                    results[place] = result
            if away is not None:
                raise DependencyUnavailableError(
                    f"The embed service cannot serve now: {away.message}",
                    metadata={"dependency": "embed", "reason": _AWAY},
                    retry_after_seconds=_PARTLY_AWAY_SECONDS,
                )
            return None

        death = await self._patience.call(call)
        if death is not None:
            raise _DeathError(death)
        return [results[place] for place in range(len(texts))]

    async def _wait_until_back(self, model: EmbedModel, error: DependencyUnavailableError) -> None:
        """Returns once the service answers. Raises DependencyUnavailableError if it does not."""
        get_logger().warning("embed_went_away", code=error.metadata.get("code"))
        await self._patience.call(lambda: self._embed.model(model.name))


def _blame(error: DependencyUnavailableError) -> Failure:
    if error.metadata.get("code") == _TIMED_OUT:
        return Failure("ERROR_REASON_TIMEOUT", "The model did not answer for this text in time.")
    return Failure(
        "ERROR_REASON_WORKER_DIED", "The embed service stops whenever it gets this text."
    )
