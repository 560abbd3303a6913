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
    from collections.abc import AsyncIterator, Sequence

    from services.indexer.embed_client import EmbedClient, Vector
    from services.indexer.model import EmbedModel
    from services.indexer.patience import Patience

_OVERLOADED = "RESOURCE_EXHAUSTED"
_TIMED_OUT = "DEADLINE_EXCEEDED"
_DEATHS_IN_COMPANY = 2
"""Times that a batch may fail beside others, before it is tried alone."""

_DEATHS_ALONE = 2
"""Times that a single text may fail while nothing else runs, before it is the one to blame."""


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
    others are embedded.
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
                async with self._gate.shared():
                    return await self._call(model, texts)
            except BatchRefusedError as error:
                if len(texts) == 1:
                    return [error.failure]
                break
            except DependencyUnavailableError as error:
                await self._wait_until_back(model, error)
        return await self._embed_suspects(model, texts)

    async def _embed_suspects(
        self, model: EmbedModel, texts: Sequence[str]
    ) -> list[Vector | Failure]:
        """Embeds texts while nothing else runs, so that what goes wrong is their doing."""
        failure = None
        for _ in range(_DEATHS_ALONE if len(texts) == 1 else 1):
            try:
                async with self._gate.alone():
                    return await self._call(model, texts)
            except BatchRefusedError as error:
                failure = error.failure
                break
            except DependencyUnavailableError as error:
                failure = _blame(error)
                await self._wait_until_back(model, error)
        assert failure is not None
        if len(texts) == 1:
            get_logger().warning("text_given_up", reason=failure.reason)
            return [failure]
        half = len(texts) // 2
        first = await self._embed_suspects(model, texts[:half])
        return first + await self._embed_suspects(model, texts[half:])

    async def _call(self, model: EmbedModel, texts: Sequence[str]) -> list[Vector | Failure]:
        """Calls embed; overload is no death, it is waited out here."""

        async def call() -> list[Vector | Failure] | DependencyUnavailableError:
            try:
                return await self._embed.embed_documents(model, texts)
            except DependencyUnavailableError as error:
                if error.metadata.get("code") == _OVERLOADED:
                    raise
                return error

        result = await self._patience.call(call)
        if isinstance(result, DependencyUnavailableError):
            raise result
        return result

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
