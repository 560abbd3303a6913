"""A recorder that replays by calling, and a small encoder whose forwards it records."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from services.embed.backends.torch_attention import attend_by_length
from services.embed.backends.torch_graphs import GraphedEncoder, graphed_encoder
from services.embed.backends.torch_packed import to_host
from services.embed.backends.torch_recorder import DirectRecorder
from services.embed.backends.torch_varlen import PackedEncoder
from tests.support.random_models import POSITIONS, WORDS, save_random_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest

    from services.embed.model import TokenIds, Vectors


BUDGET = 256
SIZES = [64, 96, 128, 192, 256]


class Clock:
    """A clock that goes on when something says what it took."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class CountedRecorder(DirectRecorder):
    """Replays by calling, and takes the seconds and the bytes that it is told by bucket."""

    def __init__(
        self, clock: Clock, seconds: dict[int, float], bytes_of: Callable[[int], int]
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._bytes_of = bytes_of
        self.recorded: list[int] = []
        self.open = True
        self.break_after = -1

    @property
    def held_bytes(self) -> int:  # type: ignore[override]
        return sum(map(self._bytes_of, self.recorded)) if self.open else 0

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        assert self.open
        tokens: int = run.args[0].tokens  # type: ignore[attr-defined]
        super().record(run)
        self.recorded.append(tokens)

        def replay() -> None:
            assert self.open
            if not self.break_after:
                raise RuntimeError("CUDA error: unspecified launch failure")
            self.break_after -= 1
            run()
            self._clock.now += self._seconds[tokens]

        return replay

    def close(self) -> None:
        self.open = False


class GraphRig:
    """A small encoder, whose ordinary forward takes a second, and all recorders that were made."""

    def __init__(self, folder: Path, seconds: dict[int, float] | None = None) -> None:
        model = SentenceTransformer(
            str(save_random_model(folder, "roberta")), device="cpu", local_files_only=True
        )
        self.encoder = PackedEncoder(model.float().eval(), attend_by_length).eval()
        self.encoder.register_forward_hook(self._pass_a_second)
        self.clock = Clock()
        self.seconds = seconds or dict.fromkeys(SIZES, 0.5)
        self.bytes_of: Callable[[int], int] = lambda _: 0
        self.recorders: list[CountedRecorder] = []

    def _pass_a_second(self, *_: Any) -> None:
        self.clock.now += 1.0

    def recorder(self) -> CountedRecorder:
        made = CountedRecorder(self.clock, self.seconds, self.bytes_of)
        self.recorders.append(made)
        return made

    def graphed(self) -> GraphedEncoder | None:
        return graphed_encoder(
            self.encoder,
            batch_of(random.Random(1), 3, 17, 40),
            token_budget=BUDGET,
            longest=POSITIONS,
            recorders=self.recorder,
            clock=self.clock,
        )


def batch_of(chance: random.Random, *lengths: int) -> list[TokenIds]:
    return [
        np.array([chance.randrange(len(WORDS) + 5) for _ in range(length)], dtype=np.int64)
        for length in lengths
    ]


def batch_of_tokens(chance: random.Random, tokens: int) -> list[TokenIds]:
    count = -(-tokens // 40)
    return batch_of(
        chance, *[tokens // count] * (count - 1), tokens - tokens // count * (count - 1)
    )


def ordinary(encoder: PackedEncoder, batch: Sequence[TokenIds]) -> Vectors:
    with torch.inference_mode():
        return to_host(encoder(batch))


def replayed(graphed: GraphedEncoder, batch: Sequence[TokenIds]) -> Vectors | None:
    with torch.inference_mode():
        rows = graphed.start(batch)
    return None if rows is None else rows.wait()


def events_told(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    lines = capsys.readouterr().err.splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in told if line["event"] == event]
