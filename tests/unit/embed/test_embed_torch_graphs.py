"""Where recorded forwards are used, on the CPU: a recorder that replays by calling."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from services.embed.backends import torch_graphs
from services.embed.backends.torch_graphs import gain_of
from services.embed.backends.torch_varlen import PackedEncoder
from tests.unit.embed.graph_rig import (
    BUDGET,
    SIZES,
    Clock,
    CountedRecorder,
    GraphRig,
    batch_of,
    batch_of_tokens,
    events_told,
    ordinary,
    replayed,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.embed.model import TokenIds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_bucket_is_replayed_where_that_is_faster_by_a_twentieth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when a bucket that wins by less is used, and when a batch takes a larger bucket's."""
    rig = GraphRig(tmp_path, {64: 0.5, 96: 1 / 1.04, 128: 1 / 1.06, 192: 1.0, 256: 2.0})

    graphed = rig.graphed()

    assert graphed is not None
    assert graphed.graphs == 2
    chance = random.Random(2)
    for tokens, is_replayed in [(1, True), (64, True), (65, False), (96, False), (97, True),
                                (128, True), (129, False), (256, False), (257, False)]:  # fmt: skip
        batch = batch_of_tokens(chance, tokens)
        rows = replayed(graphed, batch)
        assert (rows is not None) == is_replayed, tokens
        if rows is not None:
            assert np.abs(rows - ordinary(rig.encoder, batch)).max() <= 1e-5
    (told,) = events_told(capsys, "cuda_graphs_measured")
    assert told["graphs"] == 2
    assert told["gains"] == {"64": 2.0, "96": 1.04, "128": 1.06, "192": 1.0, "256": 0.5}


def test_a_gain_is_that_of_medians_and_both_take_turns() -> None:
    """Red with means, and when one way runs all of its rounds before the other begins."""
    clock = Clock()
    order: list[str] = []
    outliers = {0: 100.0, 5: 50.0}

    def replayed() -> None:
        clock.now += outliers.get(len(order) // 2, 0.8)
        order.append("replayed")

    def ordinary() -> None:
        clock.now += 1.0
        order.append("ordinary")

    assert gain_of(replayed, ordinary, clock) == pytest.approx(1.25)
    assert order == ["replayed", "ordinary"] * (len(order) // 2)
    assert len(order) >= 10


def test_buckets_replayed_in_any_order_give_the_rows_of_the_ordinary_forward(
    tmp_path: Path,
) -> None:
    """Red when the inputs of one bucket are read by another's forward."""
    rig = GraphRig(tmp_path)
    graphed = rig.graphed()
    assert graphed is not None
    assert graphed.graphs == len(SIZES)
    chance = random.Random(3)

    for _ in range(60):
        batch = batch_of_tokens(chance, chance.randint(1, BUDGET))
        rows = replayed(graphed, batch)
        assert rows is not None
        assert np.abs(rows - ordinary(rig.encoder, batch)).max() <= 1e-5


def test_trials_give_their_memory_back_and_the_largest_is_recorded_first(tmp_path: Path) -> None:
    """Red when a trial's recorder stays open, and when small graphs are recorded before large."""
    rig = GraphRig(tmp_path)
    graphed = rig.graphed()
    assert graphed is not None
    *trials, last = rig.recorders
    assert [one.recorded for one in trials] == [[size] for size in SIZES]
    assert not any(one.open for one in trials)
    assert last.recorded == SIZES[::-1]
    assert last.open
    graphed.close()
    assert not any(one.open for one in rig.recorders)
    assert replayed(graphed, batch_of(random.Random(4), 5)) is None


@pytest.mark.parametrize(("most", "kept"), [(100_000, 5), (640, 4), (479, 3), (63, 0)])
def test_graphs_take_no_more_memory_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, kept: int
) -> None:
    """Red when the bound is not looked at: all five are kept."""
    monkeypatch.setattr(torch_graphs, "MOST_BYTES", most)
    rig = GraphRig(tmp_path)
    rig.bytes_of = lambda tokens: tokens

    graphed = rig.graphed()

    assert (graphed.graphs if graphed is not None else 0) == kept
    assert sum(one.held_bytes for one in rig.recorders) <= most
    held = [one for one in rig.recorders if one.open and one.recorded]
    assert len(held) == (1 if kept else 0)


@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
@pytest.mark.parametrize("failing", [0, 3, len(SIZES)])
def test_a_capture_that_fails_leaves_the_ordinary_forward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: int, kind: type[Exception]
) -> None:
    """Red when recorders that were made before, or the failing one, stay open.

    Also when an error of another kind, as another release of torch raises, ends the load.
    """
    rig = GraphRig(tmp_path)

    class _Failing(CountedRecorder):
        def record(self, run: Callable[[], None]) -> Callable[[], None]:
            if len(rig.recorders) > failing and (failing < len(SIZES) or len(self.recorded) == 2):
                raise kind("operation not permitted when stream is capturing")
            return super().record(run)

    def recorder() -> CountedRecorder:
        made = _Failing(rig.clock, rig.seconds, rig.bytes_of)
        rig.recorders.append(made)
        return made

    rig.recorder = recorder  # type: ignore[method-assign]

    assert rig.graphed() is None

    assert len(rig.recorders) == failing + 1
    assert not any(one.open for one in rig.recorders)
    (told,) = events_told(capsys, "cuda_graphs_failed")
    assert (told["error"], told["serving"]) == (kind.__name__, False)


def test_replays_that_give_other_vectors_do_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = GraphRig(tmp_path)
    right = PackedEncoder.positions_of
    calls = iter(range(1 << 20))

    def wrong(self: PackedEncoder, ids: TokenIds) -> TokenIds:
        return right(self, ids) if next(calls) % 2 else right(self, ids)[::-1]

    monkeypatch.setattr(PackedEncoder, "positions_of", wrong)

    assert rig.graphed() is None

    assert not any(one.open for one in rig.recorders)
    (told,) = events_told(capsys, "cuda_graphs_disagree")
    assert told["cosine"] < 0.999
