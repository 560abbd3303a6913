"""The precision that a model computes with is decided by trying, once per kind of CPU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from services.embed.backends import cpu
from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.backends.precision import choose_precision
from services.embed.canary import CANARY_TEXTS
from services.embed.model import Precision, TokenIds, Vectors
from services.runtime.exits import ExitCode, StartError
from tests.unit.embed.harness import ids_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ENCODER = HashingEncoder(max_text_chars=1 << 20)
CANARY = HashingBackend().infer([ids_of(text) for text in CANARY_TEXTS])


class _Backend(HashingBackend):
    """Computes in a precision with an error and a delay of its own."""

    def __init__(self, precision: Precision, *, error: float, seconds: float) -> None:
        super().__init__()
        self.precision = precision
        self._error = error
        self._seconds = seconds

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        time.sleep(self._seconds)  # how slow an engine is cannot be had without time passing
        rows = super().infer(batch)
        return rows + np.float32(self._error)


class _Machine:
    """Compiles backends and counts them."""

    def __init__(self, *, error: float = 0.0, slow: Precision = Precision.FLOAT32) -> None:
        self.compiled: list[Precision] = []
        self._error = error
        self._slow = slow

    def compile_in(self, precision: Precision) -> _Backend:
        self.compiled.append(precision)
        return _Backend(
            precision,
            error=self._error if precision is Precision.BFLOAT16 else 0.0,
            seconds=0.004 if precision is self._slow else 0.001,
        )

    def choose(self, folder: Path, wanted: str = "auto") -> Precision:
        chosen = choose_precision(
            self.compile_in, ENCODER, canary=CANARY, wanted=wanted, folder=folder
        )
        return chosen.precision


@pytest.fixture
def _fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: True)


@pytest.mark.usefixtures("_fast_bfloat16")
def test_bfloat16_serves_when_it_is_right_and_fast(tmp_path: Path) -> None:
    assert _Machine().choose(tmp_path) is Precision.BFLOAT16


@pytest.mark.usefixtures("_fast_bfloat16")
def test_bfloat16_that_is_wrong_does_not_serve(tmp_path: Path) -> None:
    assert _Machine(error=0.05).choose(tmp_path) is Precision.FLOAT32


@pytest.mark.usefixtures("_fast_bfloat16")
def test_bfloat16_that_is_slow_does_not_serve(tmp_path: Path) -> None:
    assert _Machine(slow=Precision.BFLOAT16).choose(tmp_path) is Precision.FLOAT32


def test_a_cpu_without_bfloat16_does_not_try_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it can be a hundred times slower: the trial itself would take minutes."""
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: False)
    machine = _Machine()

    assert machine.choose(tmp_path) is Precision.FLOAT32
    assert machine.compiled == [Precision.FLOAT32]


@pytest.mark.usefixtures("_fast_bfloat16")
def test_what_was_measured_is_remembered(tmp_path: Path) -> None:
    _Machine().choose(tmp_path)
    second = _Machine()

    assert second.choose(tmp_path) is Precision.BFLOAT16
    assert second.compiled == [Precision.BFLOAT16]


@pytest.mark.usefixtures("_fast_bfloat16")
def test_a_remembered_precision_that_became_wrong_stops_the_start(tmp_path: Path) -> None:
    _Machine().choose(tmp_path)

    with pytest.raises(StartError) as failure:
        _Machine(error=0.05).choose(tmp_path)

    assert failure.value.code is ExitCode.MODEL
    assert "LODESTONE_EMBED_PRECISION=float32" in failure.value.message
