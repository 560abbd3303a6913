"""Forwards of fixed shapes, whatever the batch: what can be recorded once and replayed.

A row of a bucket's length holds the texts of a batch end to end, then padding. The padding is made
of segments of its own, each at most as long as a text may be, so that no text attends to it; the
segments that are left are empty. All inputs and the result lie where they lay the time before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from services.embed.backends.torch_attention import Segments

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from services.embed.backends.torch_varlen import PackedEncoder
    from services.embed.model import TokenIds

_LEAST_TOKENS = 64
_MOST_TOKENS = 16384
"""Tokens of the largest bucket: in more the GPU is busy for longer than a host needs to feed it."""
_MOST_TEXTS = 256
_TEXT_TOKENS = 4
"""Tokens of a text that a bucket reckons with at least; shorter ones fill a larger bucket."""
FlatT = TypeVar("FlatT", torch.Tensor, "np.ndarray[Any, np.dtype[np.int64]]")


class Inputs(NamedTuple, Generic[FlatT]):
    """The parts of what a forward reads, in int64.

    `ids` and `positions` have shape (tokens,), `bounds` (slots + 1,) and `texts`, their number,
    (1,).
    """

    ids: FlatT
    positions: FlatT
    bounds: FlatT
    texts: FlatT


@dataclass(frozen=True, slots=True)
class Bucket:
    """A shape of forwards: tokens of the row, most texts, and most tokens of one text."""

    tokens: int
    texts: int
    longest: int

    @property
    def slots(self) -> int:
        """Segments of the row: one for each text, and those that the padding may need."""
        return self.texts + -(-self.tokens // self.longest)

    @property
    def size(self) -> int:
        """Numbers that a forward reads."""
        return 2 * self.tokens + self.slots + 2

    def holds(self, batch: Sequence[TokenIds]) -> bool:
        """Tells whether a batch has room."""
        lengths = list(map(len, batch))
        return (
            len(batch) <= self.texts
            and max(lengths) <= self.longest
            and sum(lengths) <= self.tokens
        )

    def split(self, flat: FlatT) -> Inputs[FlatT]:
        """Returns the parts of what a forward reads, as views of the first `size` numbers."""
        bounds_at = 2 * self.tokens
        texts_at = bounds_at + self.slots + 1
        return Inputs(
            flat[: self.tokens],
            flat[self.tokens : bounds_at],
            flat[bounds_at:texts_at],
            flat[texts_at : self.size],
        )


def buckets_up_to(token_budget: int, longest: int) -> list[Bucket]:
    """Returns buckets of powers of two tokens, those half-way between, and the budget's own.

    Ascending; at most a third of a bucket is padding, unless a batch is small or its texts short.
    """
    most = min(token_budget, _MOST_TOKENS)
    sizes = {most}
    power = _LEAST_TOKENS
    while power < most:
        sizes |= {power, min(power + power // 2, most)}
        power *= 2
    return [
        Bucket(
            tokens=size,
            texts=max(1, min(_MOST_TEXTS, size // _TEXT_TOKENS)),
            longest=min(size, longest),
        )
        for size in sorted(sizes)
    ]


class StaticEncoder:
    """An encoder without padding, run in buckets on tensors that stay where they are.

    A batch is filled in, run, and the copy of its rows begun before the next one comes.
    """

    def __init__(self, encoder: PackedEncoder, buckets: Sequence[Bucket]) -> None:
        self.encoder = encoder
        self.buckets = list(buckets)
        device = encoder.device
        sizes = [bucket.size for bucket in buckets]
        self._flat = torch.zeros(max(sizes), dtype=torch.int64, device=device)
        most_texts = max(bucket.texts for bucket in buckets)
        self._rows = torch.zeros((most_texts, encoder.dimensions), device=device)

    def bucket_of(self, batch: Sequence[TokenIds]) -> Bucket | None:
        """Returns the smallest bucket with room for a batch; None when there is none."""
        return next((bucket for bucket in self.buckets if bucket.holds(batch)), None)

    def inputs(self, bucket: Bucket) -> Inputs[torch.Tensor]:
        """Returns the tensors that a bucket's forward reads."""
        return bucket.split(self._flat)

    def fill(self, bucket: Bucket, batch: Sequence[TokenIds]) -> None:
        """Puts a batch for which there is room where the forward reads it, by one copy."""
        cuda = self._flat.device.type == "cuda"
        # Memory of its own for each batch: a copy from the last one's may be under way.
        flat = torch.zeros(bucket.size, dtype=torch.int64, pin_memory=cuda)
        ids, positions, bounds, number = bucket.split(flat.numpy())
        ends = np.cumsum([len(text) for text in batch])
        filled, texts = int(ends[-1]), len(batch)
        ids[:filled] = np.concatenate(batch)
        positions[:filled] = np.concatenate([self.encoder.positions_of(text) for text in batch])
        bounds[1 : texts + 1] = ends
        steps = np.arange(1, bucket.slots - texts + 1)
        bounds[texts + 1 :] = np.minimum(filled + bucket.longest * steps, bucket.tokens)
        number[:] = texts
        self._flat[: bucket.size].copy_(flat, non_blocking=True)

    def run(self, bucket: Bucket) -> None:
        """Makes rows of what was filled in; on a GPU it neither waits nor asks for a value.

        Rows beyond those of the texts are zero.
        """
        ids, positions, bounds, texts = self.inputs(bucket)
        segments = Segments.within(bounds.int(), bucket.longest)
        vectors = self.encoder.vectors(ids, positions, segments)[: bucket.texts]
        unused = torch.arange(bucket.texts, device=texts.device) >= texts
        normalised = torch.nn.functional.normalize(vectors.float(), dim=-1)
        self._rows[: bucket.texts] = normalised.masked_fill(unused.unsqueeze(1), 0.0)

    def rows(self, texts: int) -> torch.Tensor:
        """Returns where the first rows lie, shape (texts, dimensions), in float32, normalised."""
        return self._rows[:texts]
