"""A model that serves: from texts and options to one outcome per text."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from services.embed import metrics
from services.embed.errors import BadVectorError, FingerprintMismatchError
from services.embed.model import Embedding, EncodedText, Lane
from services.runtime.errors import (
    DependencyUnavailableError,
    InvalidRequestError,
    LodestoneError,
    OverloadedError,
)
from services.runtime.telemetry import tracer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from services.embed.admission import Admission, Ticket
    from services.embed.backends.protocol import Backend, TextEncoder
    from services.embed.batcher import Batcher
    from services.embed.model import EmbedOptions, ModelInfo, Outcome, Prompts
    from services.embed.work import Result

_CHARS_PER_TOKEN = 3
"""Code has three to four characters a token; the guess holds until the text is tokenized."""


class ServedModel:
    """Embeds texts with one loaded model. It owns the batcher and the backend."""

    def __init__(
        self,
        *,
        info: ModelInfo,
        prompts: Prompts,
        backend: Backend,
        encoder: TextEncoder,
        batcher: Batcher,
        admission: Admission,
        executor: Executor,
    ) -> None:
        self.info = info
        self._prompts = prompts
        self._backend = backend
        self._encoder = encoder
        self._batcher = batcher
        self._admission = admission
        self._executor = executor

    async def embed(
        self,
        texts: Sequence[str],
        options: EmbedOptions,
        *,
        wait_for_room: bool = False,
        deadline_seconds: float | None = None,
    ) -> list[Outcome]:
        """Returns one outcome per text, in order; one bad text does not fail the others.

        Idempotent. With `wait_for_room` a full queue delays the call instead of failing it. A call
        that what waits already would keep beyond its deadline is refused at once.

        Raises:
            InvalidRequestError: the options do not fit the model, or there are too many texts.
            FingerprintMismatchError: the model is not the one that the caller expects.
            OverloadedError: too much waits already.
        """
        self._check(texts, options)
        size = sum(map(len, texts))
        guess = sum(min(len(text) // _CHARS_PER_TOKEN + 2, self.info.max_tokens) for text in texts)
        try:
            if wait_for_room:
                ticket = await self._admission.admit_when_room(
                    tokens=guess, size=size, lane=options.lane
                )
            else:
                ticket = self._admission.admit(
                    tokens=guess, size=size, lane=options.lane, deadline_seconds=deadline_seconds
                )
            with ticket:
                return await self._embed_admitted(texts, options, ticket)
        except OverloadedError:
            metrics.TEXTS.labels(options.lane, "overloaded").inc(len(texts))
            raise
        except asyncio.CancelledError:
            metrics.TEXTS.labels(options.lane, "cancelled").inc(len(texts))
            raise

    @property
    def queued_tokens(self) -> int:
        """Tokens of all texts that wait or run."""
        return self._admission.tokens

    async def close(self) -> None:
        """Ends forwards and releases the model."""
        await self._batcher.close()
        await asyncio.to_thread(self._backend.close)

    def _check(self, texts: Sequence[str], options: EmbedOptions) -> None:
        info = self.info
        if len(texts) > info.max_batch_texts:
            raise InvalidRequestError(
                f"At most {info.max_batch_texts} texts a request.",
                metadata={"texts": f"has {len(texts)} items"},
            )
        if options.dimensions not in {0, *info.allowed_dimensions}:
            sizes = ", ".join(map(str, info.allowed_dimensions))
            raise InvalidRequestError(
                f"Vectors of {info.model_id} may have these numbers of dimensions: {sizes}.",
                metadata={"options.dimensions": f"must be 0 or one of {sizes}"},
            )
        expected = options.expect_fingerprint
        if expected and expected != info.fingerprint:
            raise FingerprintMismatchError(expected=expected, actual=info.fingerprint)

    async def _embed_admitted(
        self, texts: Sequence[str], options: EmbedOptions, ticket: Ticket
    ) -> list[Outcome]:
        encoded = await self._encode(texts, options)
        good = [item for item in encoded if isinstance(item, EncodedText)]
        ticket.correct(sum(len(item.ids) for item in good))
        with tracer().start_as_current_span("lodestone.embed.wait"):  # for its turn and its forward
            results = await self._batcher.run(
                [item.ids for item in good], layout=self.info.layout_of(options), lane=options.lane
            )
        assert len(results) == len(good)
        lost = [one for one in results if isinstance(one, DependencyUnavailableError)]
        if lost and len(lost) == len(results):  # whoever calls again later is served
            raise lost[0]
        left = iter(results)
        outcomes = [
            _outcome(item, next(left)) if isinstance(item, EncodedText) else item
            for item in encoded
        ]
        _count(outcomes, options.lane)
        return outcomes

    async def _encode(
        self, texts: Sequence[str], options: EmbedOptions
    ) -> list[EncodedText | LodestoneError]:
        prompt = self._prompts.of(options.purpose)
        prompted = [prompt + text for text in texts] if prompt else texts
        started = time.perf_counter()
        with tracer().start_as_current_span("lodestone.embed.tokenize"):
            encoded = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._encoder.encode, prompted, options.truncation
            )
        metrics.TOKENIZE_SECONDS.observe(time.perf_counter() - started)
        return encoded


def _outcome(encoded: EncodedText, result: Result) -> Outcome:
    if isinstance(result, LodestoneError):
        return result
    return Embedding(result, token_count=len(encoded.ids), truncated=encoded.shortened)


def _count(outcomes: Sequence[Outcome], lane: Lane) -> None:
    bad = sum(isinstance(outcome, BadVectorError) for outcome in outcomes)
    ok = sum(isinstance(outcome, Embedding) for outcome in outcomes)
    counts = {"ok": ok, "bad_vector": bad, "invalid": len(outcomes) - ok - bad}
    for outcome, count in counts.items():
        if count:
            metrics.TEXTS.labels(lane, outcome).inc(count)
