"""How many forwards run at once is measured once per kind of machine, within seconds."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.embed.backends import layout as layouts
from services.embed.backends.hashing import HashingBackend
from services.embed.backends.layout import Layout, choose_layout, clear_winner, usual_layout
from services.embed.backends.loading import load
from services.embed.model import Precision, TokenIds, Vectors
from services.embed.sources import resolve_source
from tests.unit.embed.harness import ids_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

USUAL = Layout(4, 4)


class _Backend(HashingBackend):
    """Takes a time of its own for a batch; streams do not slow each other down."""

    def __init__(self, layout: Layout, seconds: float, max_tokens: int) -> None:
        super().__init__()
        identity = replace(self._info.identity, max_tokens=max_tokens)
        self._info = replace(
            self._info, concurrency=layout.streams, token_budget=256, identity=identity
        )
        self._seconds = seconds

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        assert max(map(len, batch)) <= self._info.identity.max_tokens
        time.sleep(self._seconds)  # how slow an engine is cannot be had without time passing
        return super().infer(batch[:1])


class _Machine:
    """Compiles backends and counts them; `seconds` says how long a batch takes by streams."""

    def __init__(self, seconds: dict[int, float], max_tokens: int = 512) -> None:
        self.max_tokens = max_tokens
        self.compiled: list[Layout] = []
        self._seconds = seconds

    def compile_with(self, layout: Layout) -> _Backend:
        self.compiled.append(layout)
        return _Backend(layout, self._seconds[layout.streams], self.max_tokens)

    def choose(self, folder: Path, usual: Layout = USUAL) -> Layout:
        return choose_layout(
            self.compile_with,
            usual=usual,
            precision=Precision.FLOAT32,
            some_ids=ids_of("def a(): return b"),
            folder=folder,
        )


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_ROUND_SECONDS", 0.05)


def test_the_fastest_layout_is_taken_and_remembered(tmp_path: Path) -> None:
    first, second = _Machine({4: 0.04, 2: 0.005, 1: 0.02}), _Machine({})

    assert first.choose(tmp_path) == Layout(2, 4)
    assert second.choose(tmp_path) == Layout(2, 4)
    assert second.compiled == []
    (kept,) = tmp_path.iterdir()
    assert set(json.loads(kept.read_text())["batches_per_second"]) == {"4x4", "2x4", "1x4"}


@pytest.mark.parametrize(
    ("two", "one", "winner"),
    [
        ([104, 104, 104], [90, 90, 90], 4),
        ([200, 200, 101], [90, 90, 90], 4),
        ([106, 107, 130], [90, 90, 90], 2),
        ([106, 107, 108], [120, 110, 109], 1),
    ],
)
def test_a_layout_must_win_clearly_in_each_round(
    two: list[float], one: list[float], winner: int
) -> None:
    """Red when the highest rate wins whatever its lead: noise decides at each first start."""
    rates = {USUAL: [100.0] * 3, Layout(2, 4): two, Layout(1, 4): one}

    assert clear_winner(USUAL, rates).streams == winner


def test_another_number_of_cores_is_measured_again(tmp_path: Path) -> None:
    _Machine({4: 0.01, 2: 0.01, 1: 0.01}).choose(tmp_path)
    other = _Machine({2: 0.01, 1: 0.01})

    assert other.choose(tmp_path, usual_layout(2)) == Layout(2, 2)
    assert other.compiled == [Layout(2, 2), Layout(1, 2)]


def test_a_model_of_short_texts_is_measured_with_such(tmp_path: Path) -> None:
    """Red when it is given texts beyond its positions: an engine dies of them as it is loaded."""
    machine = _Machine({2: 0.01, 1: 0.01}, max_tokens=48)

    assert machine.choose(tmp_path, usual_layout(2)) == Layout(2, 2)


def test_one_core_needs_no_measurement(tmp_path: Path) -> None:
    machine = _Machine({})

    assert machine.choose(tmp_path, usual_layout(1)) == Layout(1, 1)
    assert machine.compiled == []


@pytest.mark.slow
async def test_streams_and_threads_that_are_set_are_not_measured() -> None:
    settings = settings_of(model="minilm", backend="openvino", streams=3, threads=3)

    model = await load(resolve_source(settings), settings)

    assert model.backend.info.concurrency == 3
    model.backend.close()
