"""A model that scores: from a query and texts to one outcome per text."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from services.embed import metrics
from services.embed.forwarding import ForwardingModel, Order, end_of
from services.embed.model import Lane, Score
from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.forwarding import Parts, Row
    from services.embed.model import ScoreOutcome
    from services.embed.pair_tokenizer import PairTokenizer

_BAD = "bad_score"


class ServedReranker(ForwardingModel):
    """Scores texts against queries with one loaded cross-encoder."""

    def __init__(self, parts: Parts, encoder: PairTokenizer) -> None:
        super().__init__(parts)
        self._encoder = encoder

    async def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        deadline_seconds: float | None = None,
        caller: str = "",
    ) -> list[ScoreOutcome]:
        """Returns one outcome per text, in order; one bad text does not fail the others.

        Idempotent. A user waits: texts take the lane of queries. A call that what waits already
        would keep beyond its deadline is refused at once.

        Raises:
            InvalidRequestError: there are too many texts.
            OverloadedError: too much waits already.
        """
        order = Order(
            texts=texts,
            encode=partial(self._encoder.encode_pairs, query),
            count=_count,
            lane=Lane.INTERACTIVE,
            extra_chars=len(query),
            caller=caller,
        )
        outcomes = list(
            map(_outcome, await self._forward(order, deadline_seconds=deadline_seconds))
        )
        _count_all(outcomes)
        return outcomes


def _outcome(row: Row | LodestoneError) -> ScoreOutcome:
    if isinstance(row, LodestoneError):
        return row
    encoded, (score,) = row
    return Score(float(score), token_count=len(encoded.ids), truncated=encoded.shortened)


def _count(outcome: str, texts: int) -> None:
    metrics.RERANKED_TEXTS.labels(outcome).inc(texts)


def _count_all(outcomes: Sequence[ScoreOutcome]) -> None:
    for end, count in Counter(end_of(outcome, bad=_BAD) for outcome in outcomes).items():
        _count(end, count)
