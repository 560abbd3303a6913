"""Replays recorded forwards in buckets of tokens, where a measurement shows that it is faster."""

from __future__ import annotations

import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from services.embed.backends.torch_packed import HostRows, to_host
from services.embed.backends.torch_static import StaticEncoder, buckets_up_to
from services.embed.canary import LEAST_COSINE, least_cosine
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from services.embed.backends.torch_recorder import Recorder
    from services.embed.backends.torch_static import Bucket
    from services.embed.backends.torch_varlen import PackedEncoder
    from services.embed.model import TokenIds, Vectors

LEAST_GAIN: Final = 1.05
"""What a replay must win by: less is noise, and not worth the memory."""
MOST_BYTES: Final = 512 << 20
"""Most memory of the device for the graphs of a model."""
_ROUNDS = 7
_LEAST_SECONDS = 1e-9
_TEXT_TOKENS = 64
"""Length of the texts that are measured with: that of a short function."""


class Trial(NamedTuple):
    """What came of a bucket's trial."""

    gain: float
    """Time of the ordinary forward over that of the replay."""
    cosine: float
    """The least between vectors of the two."""


class GraphedEncoder:
    """Replays of the buckets where that wins, laid out one at a time: all share an encoder."""

    def __init__(
        self,
        static: StaticEncoder,
        replays: Mapping[Bucket, Callable[[], None]],
        recorder: Recorder,
    ) -> None:
        self._static = static
        self._replays = dict(replays)
        self._recorder = recorder

    @property
    def graphs(self) -> int:
        """Buckets that are replayed."""
        return len(self._replays)

    @property
    def held_bytes(self) -> int:
        """Memory of the device that they hold."""
        return self._recorder.held_bytes

    def start(self, batch: Sequence[TokenIds]) -> HostRows | None:
        """Returns one row per text, normalised in float32; None when nothing was won by a replay.

        A batch takes its own bucket or none: a larger one was not measured with so much padding.
        """
        bucket = self._static.bucket_of(batch)
        replay = self._replays.get(bucket) if bucket is not None else None
        if bucket is None or replay is None:
            return None
        return _replayed(self._static, bucket, batch, replay)

    def close(self) -> None:
        """Releases the graphs and their memory."""
        self._replays.clear()
        self._recorder.close()


def graphed_encoder(
    encoder: PackedEncoder,
    canaries: Sequence[TokenIds],
    *,
    token_budget: int,
    longest: int,
    recorders: Callable[[], Recorder],
    clock: Callable[[], float] = time.perf_counter,
) -> GraphedEncoder | None:
    """Returns recorded forwards of the buckets where they win; None where none does.

    Every bucket up to `token_budget` is tried on canary texts, by the clock's seconds. When one
    cannot be recorded, or gives other vectors, none is used and the log says so. `longest` is the
    most tokens of a text.
    """
    started = clock()
    static = StaticEncoder(encoder, buckets_up_to(token_budget, longest))
    batches = _trial_batches(static.buckets, canaries)
    try:
        with torch.inference_mode():
            trials = {
                bucket: _trial(static, bucket, batch, recorders(), clock)
                for bucket, batch in batches.items()
            }
            worst = min(trial.cosine for trial in trials.values())
            if worst < LEAST_COSINE:
                get_logger().warning("cuda_graphs_disagree", cosine=round(worst, 5))
                return None
            winners = [bucket for bucket, trial in trials.items() if trial.gain >= LEAST_GAIN]
            graphed = _recorded(static, {bucket: batches[bucket] for bucket in winners}, recorders)
    except Exception as error:  # noqa: BLE001 - whatever it is, ordinary forwards serve
        get_logger().warning("cuda_graphs_failed", error=type(error).__name__, serving=False)
        return None
    get_logger().info(
        "cuda_graphs_measured",
        gains={bucket.tokens: round(trial.gain, 2) for bucket, trial in trials.items()},
        graphs=graphed.graphs,
        held_bytes=graphed.held_bytes,
        seconds=round(clock() - started, 3),
    )
    return graphed if graphed.graphs else None


def _trial_batches(
    buckets: Sequence[Bucket], canaries: Sequence[TokenIds]
) -> dict[Bucket, list[TokenIds]]:
    """Returns a batch for each bucket, half-way between the fullest and the emptiest it gets."""
    some_ids = np.concatenate(canaries)
    batches = {}
    below = 0
    for bucket in buckets:
        row = np.resize(some_ids, -(-(below + bucket.tokens) // 2))
        length = min(_TEXT_TOKENS, bucket.longest)
        batches[bucket] = np.split(row, range(length, len(row), length))
        below = bucket.tokens
    return batches


def _trial(
    static: StaticEncoder,
    bucket: Bucket,
    batch: Sequence[TokenIds],
    recorder: Recorder,
    clock: Callable[[], float],
) -> Trial:
    """Returns how a bucket's replay does; its memory is given back."""

    def ordinary() -> Vectors:
        return to_host(static.encoder(batch))

    try:
        static.fill(bucket, batch)
        replay = recorder.record(partial(static.run, bucket))

        def replayed() -> Vectors:
            return _replayed(static, bucket, batch, replay).wait()

        cosine = least_cosine(replayed(), ordinary())
        return Trial(gain_of(replayed, ordinary, clock), cosine)
    finally:
        recorder.close()


def gain_of(
    replayed: Callable[[], object], ordinary: Callable[[], object], clock: Callable[[], float]
) -> float:
    """Returns how many times as long the ordinary forward takes, by medians of turns.

    Both end when their vectors are there, and have run before.
    """
    fast, slow = [], []
    for _ in range(_ROUNDS):
        started = clock()
        replayed()
        between = clock()
        ordinary()
        fast.append(between - started)
        slow.append(clock() - between)
    return median(slow) / max(median(fast), _LEAST_SECONDS)


def _recorded(
    static: StaticEncoder,
    batches: Mapping[Bucket, Sequence[TokenIds]],
    recorders: Callable[[], Recorder],
) -> GraphedEncoder:
    """Returns recordings of buckets; without the largest where they take too much memory.

    The largest is first: the others then find room in the memory that it needs.
    """
    buckets = sorted(batches, key=lambda bucket: bucket.tokens, reverse=True)
    while True:
        recorder = recorders()
        replays = {}
        try:
            for bucket in buckets:
                static.fill(bucket, batches[bucket])
                replays[bucket] = recorder.record(partial(static.run, bucket))
        except BaseException:
            recorder.close()
            raise
        if recorder.held_bytes <= MOST_BYTES:
            return GraphedEncoder(static, replays, recorder)
        replays.clear()
        recorder.close()
        buckets = buckets[1:]


def _replayed(
    static: StaticEncoder, bucket: Bucket, batch: Sequence[TokenIds], replay: Callable[[], None]
) -> HostRows:
    """Returns the rows of a batch; they are copied before they are overwritten."""
    static.fill(bucket, batch)
    replay()
    return HostRows(static.rows(len(batch)), normalised=False)
