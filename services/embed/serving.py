"""A model that embeds: from texts and options to one outcome per text."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from services.embed import metrics
from services.embed.errors import BadVectorError, FingerprintMismatchError
from services.embed.forwarding import ForwardingModel, Order, end_of
from services.embed.model import Embedding, Lane
from services.embed.vectors import to_bytes
from services.runtime.errors import InvalidRequestError, LodestoneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.backends.protocol import TextEncoder
    from services.embed.forwarding import Parts, Row
    from services.embed.model import EmbedOptions, EncodedText, Outcome, Prompts, VectorLayout


class ServedModel(ForwardingModel):
    """Embeds texts with one loaded model."""

    def __init__(self, parts: Parts, *, prompts: Prompts, encoder: TextEncoder) -> None:
        super().__init__(parts)
        self._prompts = prompts
        self._encoder = encoder

    async def embed(
        self,
        texts: Sequence[str],
        options: EmbedOptions,
        *,
        wait_for_room: bool = False,
        deadline_seconds: float | None = None,
        caller: str = "",
    ) -> list[Outcome]:
        """Returns one outcome per text, in order; one bad text does not fail the others.

        Idempotent. With `wait_for_room` a full queue delays the call instead of failing it. A call
        that what waits already would keep beyond its deadline is refused at once. Callers share the
        queue, and the model by turns.

        Raises:
            InvalidRequestError: the options do not fit the model, or there are too many texts.
            FingerprintMismatchError: the model is not the one that the caller expects.
            OverloadedError: too much waits already.
        """
        self._check(options)
        prompt = self._prompts.of(options.purpose)
        route = self._backend.info.route_of(options.purpose)
        order = Order(
            texts=texts,
            encode=lambda part: self._encoder.encode(part, options.truncation, route, prompt),
            count=partial(_count, options.lane),
            lane=options.lane,
            route=route,
            caller=caller,
        )
        rows = await self._forward(
            order, wait_for_room=wait_for_room, deadline_seconds=deadline_seconds
        )
        outcomes = _outcomes(rows, self.info.layout_of(options))
        _count_all(outcomes, options.lane)
        return outcomes

    def _check(self, options: EmbedOptions) -> None:
        info = self.info
        if options.dimensions not in {0, *info.allowed_dimensions}:
            sizes = ", ".join(map(str, info.allowed_dimensions))
            raise InvalidRequestError(
                f"Vectors of {info.model_id} may have these numbers of dimensions: {sizes}.",
                metadata={"options.dimensions": f"must be 0 or one of {sizes}"},
            )
        expected = options.expect_fingerprint
        if expected and expected != info.fingerprint:
            raise FingerprintMismatchError(expected=expected, actual=info.fingerprint)


def _outcomes(rows: Sequence[Row | LodestoneError], layout: VectorLayout) -> list[Outcome]:
    """Returns the rows laid out; one that is cut to nothing has no vector."""
    good = [row[1] for row in rows if not isinstance(row, LodestoneError)]
    laid_out = iter(to_bytes(np.stack(good), layout) if good else ())
    return [
        row if isinstance(row, LodestoneError) else _outcome(row[0], next(laid_out)) for row in rows
    ]


def _outcome(encoded: EncodedText, vector: bytes) -> Outcome:
    if not vector:
        return BadVectorError("Nothing is left of the model's vector in this length.")
    return Embedding(vector, token_count=len(encoded.ids), truncated=encoded.shortened)


def _count(lane: Lane, outcome: str, texts: int) -> None:
    metrics.TEXTS.labels(lane, outcome).inc(texts)


def _count_all(outcomes: Sequence[Outcome], lane: Lane) -> None:
    for end, count in Counter(map(end_of, outcomes)).items():
        _count(lane, end, count)
