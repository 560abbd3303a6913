"""A model that serves: texts are admitted, tokenized and run, whatever is made of the rows."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from services.embed import metrics
from services.embed.model import EncodedText, Lane
from services.runtime.errors import (
    Code,
    DependencyUnavailableError,
    InvalidRequestError,
    LodestoneError,
    OverloadedError,
)
from services.runtime.telemetry import start_as_current_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from services.embed.admission import Admission, Ticket
    from services.embed.backends.protocol import Backend
    from services.embed.batcher import Batcher
    from services.embed.model import ModelInfo, Vectors
    from services.embed.work import Result

_CHARS_PER_TOKEN = 3
"""Code has three to four characters a token; the guess holds until the text is tokenized."""
_PART_CHARS = 1 << 16
"""Characters that a call has tokenized at a time. A megabyte of code takes less than a second, but
one without a blank takes longer: other calls and a cancel wait for no more than that."""

Row: TypeAlias = "tuple[EncodedText, Vectors]"
"""A text as the model read it, and its row."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of a model, once per call.

    `encode` runs on a thread and returns one outcome per text that it is given; `count` is told of
    texts that did not get that far, with how they ended.
    """

    texts: Sequence[str]
    encode: Callable[[Sequence[str]], list[EncodedText | LodestoneError]]
    count: Callable[[str, int], None]
    lane: Lane
    extra_chars: int = 0
    """Characters that the model reads with each text."""
    route: str = ""
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a model that serves is made of, whatever it makes of texts."""

    info: ModelInfo
    backend: Backend
    batcher: Batcher
    admission: Admission
    executors: Mapping[Lane, Executor]
    """Where texts of each lane are tokenized."""


class ForwardingModel:
    """Runs texts through one loaded model. It owns the batcher and the backend."""

    def __init__(self, parts: Parts) -> None:
        self.info = parts.info
        self._backend = parts.backend
        self._batcher = parts.batcher
        self._admission = parts.admission
        self._executors = parts.executors

    @property
    def queued_tokens(self) -> int:
        """Tokens of all texts that wait or run."""
        return self._admission.tokens

    async def close(self) -> None:
        """Ends forwards and releases the model."""
        await self._batcher.close()
        await asyncio.to_thread(self._backend.close)

    async def _forward(
        self,
        order: Order,
        *,
        wait_for_room: bool = False,
        deadline_seconds: float | None = None,
    ) -> list[Row | LodestoneError]:
        """Returns one outcome per text, in order; one bad text does not fail the others.

        With `wait_for_room` a full queue delays the call instead of failing it. A call that what
        waits already would keep beyond its deadline is refused at once.

        Raises:
            InvalidRequestError: there are too many texts.
            OverloadedError: too much waits already.
        """
        count = len(order.texts)
        if count > self.info.max_batch_texts:
            raise InvalidRequestError(
                f"At most {self.info.max_batch_texts} texts a request.",
                metadata={"texts": f"has {count} items"},
            )
        size = sum(map(sys.getsizeof, order.texts)) + order.extra_chars  # as they lie in memory
        guess = sum(map(self._guess, (len(text) + order.extra_chars for text in order.texts)))
        try:
            if wait_for_room:
                ticket = await self._admission.admit_when_room(
                    tokens=guess, size=size, lane=order.lane, caller=order.caller
                )
            else:
                ticket = self._admission.admit(
                    tokens=guess,
                    size=size,
                    lane=order.lane,
                    caller=order.caller,
                    deadline_seconds=deadline_seconds,
                )
            with ticket:
                return await self._admitted(order, ticket)
        except OverloadedError:
            order.count("overloaded", count)
            raise
        except asyncio.CancelledError:
            order.count("cancelled", count)
            raise
        except LodestoneError as error:
            order.count(end_of(error), count)
            raise

    def _guess(self, chars: int) -> int:
        return min(chars // _CHARS_PER_TOKEN + 2, self.info.max_tokens)

    async def _admitted(self, order: Order, ticket: Ticket) -> list[Row | LodestoneError]:
        encoded = await self._encode(order)
        good = [item for item in encoded if isinstance(item, EncodedText)]
        ticket.correct(sum(len(item.ids) for item in good))
        with start_as_current_span("lodestone.embed.wait"):  # for its turn and its forward
            results = await self._batcher.run(
                [item.ids for item in good],
                lane=order.lane,
                route=order.route,
                caller=order.caller,
            )
        assert len(results) == len(good)
        lost = [one for one in results if isinstance(one, DependencyUnavailableError)]
        if lost and len(lost) == len(results):  # whoever calls again later is served
            raise lost[0]
        left = iter(results)
        return [
            _paired(item, next(left)) if isinstance(item, EncodedText) else item for item in encoded
        ]

    async def _encode(self, order: Order) -> list[EncodedText | LodestoneError]:
        """Tokenizes part by part, each behind those of other calls that wait by then."""
        loop, executor = asyncio.get_running_loop(), self._executors[order.lane]
        encoded: list[EncodedText | LodestoneError] = []
        started = time.perf_counter()
        with start_as_current_span("lodestone.embed.tokenize"):
            for part in _parts(order.texts):
                encoded += await loop.run_in_executor(executor, order.encode, part)
        metrics.TOKENIZE_SECONDS.observe(time.perf_counter() - started)
        return encoded


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields all texts in order, in parts of some characters; a long text is alone, or the last."""
    start = chars = 0
    for end, text in enumerate(texts, start=1):
        chars += len(text)
        if chars >= _PART_CHARS or end == len(texts):
            yield texts[start:end]
            start, chars = end, 0


def end_of(outcome: object, *, bad: str = "bad_vector") -> str:
    """Returns how a text ended, as metrics name it; `bad` is that the model failed on it."""
    if not isinstance(outcome, LodestoneError):
        return "ok"
    return {Code.INTERNAL: bad, Code.UNAVAILABLE: "unavailable"}.get(outcome.code, "invalid")


def _paired(encoded: EncodedText, result: Result) -> Row | LodestoneError:
    return result if isinstance(result, LodestoneError) else (encoded, result)
