"""Where recorded forwards are used, on the CPU: a recorder that replays by calling."""

from __future__ import annotations

import asyncio
import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from sentence_transformers import SentenceTransformer

from services.embed.backends import sentence_transformers as torch_loading
from services.embed.backends import torch_graphs
from services.embed.backends.hashing import HashingBackend
from services.embed.backends.loading import load
from services.embed.backends.torch_attention import attend_by_length
from services.embed.backends.torch_graphs import GraphedEncoder, gain_of, graphed_encoder
from services.embed.backends.torch_packed import PackedTorchBackend, to_host
from services.embed.backends.torch_recorder import DirectRecorder, recorders_for
from services.embed.backends.torch_varlen import PackedEncoder
from services.embed.model import EncodedText, ModelId, Truncation
from services.embed.settings import EmbedSettings
from services.embed.sources import FolderSource
from tests.support.random_models import POSITIONS, WORDS, save_random_model, save_random_router
from tests.unit.embed.harness import DOCUMENT, served

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from services.embed.backends.protocol import LoadedModel
    from services.embed.model import TokenIds, Vectors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_BUDGET = 256
_SIZES = [64, 96, 128, 192, 256]


class _Clock:
    """A clock that goes on when something says what it took."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Recorder(DirectRecorder):
    """Replays by calling, and takes the seconds and the bytes that it is told by bucket."""

    def __init__(
        self, clock: _Clock, seconds: dict[int, float], bytes_of: Callable[[int], int]
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


class _Rig:
    """A small encoder, whose ordinary forward takes a second, and all recorders that were made."""

    def __init__(self, folder: Path, seconds: dict[int, float] | None = None) -> None:
        model = SentenceTransformer(
            str(save_random_model(folder, "roberta")), device="cpu", local_files_only=True
        )
        self.encoder = PackedEncoder(model.float().eval(), attend_by_length).eval()
        self.encoder.register_forward_hook(self._pass_a_second)
        self.clock = _Clock()
        self.seconds = seconds or dict.fromkeys(_SIZES, 0.5)
        self.bytes_of: Callable[[int], int] = lambda _: 0
        self.recorders: list[_Recorder] = []

    def _pass_a_second(self, *_: Any) -> None:
        self.clock.now += 1.0

    def recorder(self) -> _Recorder:
        made = _Recorder(self.clock, self.seconds, self.bytes_of)
        self.recorders.append(made)
        return made

    def graphed(self) -> GraphedEncoder | None:
        return graphed_encoder(
            self.encoder,
            _batch(random.Random(1), 3, 17, 40),
            token_budget=_BUDGET,
            longest=POSITIONS,
            recorders=self.recorder,
            clock=self.clock,
        )


def _batch(chance: random.Random, *lengths: int) -> list[TokenIds]:
    return [
        np.array([chance.randrange(len(WORDS) + 5) for _ in range(length)], dtype=np.int64)
        for length in lengths
    ]


def _of_tokens(chance: random.Random, tokens: int) -> list[TokenIds]:
    count = -(-tokens // 40)
    return _batch(chance, *[tokens // count] * (count - 1), tokens - tokens // count * (count - 1))


def _ordinary(encoder: PackedEncoder, batch: Sequence[TokenIds]) -> Vectors:
    with torch.inference_mode():
        return to_host(encoder(batch))


def _replayed(graphed: GraphedEncoder, batch: Sequence[TokenIds]) -> Vectors | None:
    with torch.inference_mode():
        rows = graphed.start(batch)
    return None if rows is None else rows.wait()


def _told(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    lines = capsys.readouterr().err.splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in told if line["event"] == event]


def test_a_bucket_is_replayed_where_that_is_faster_by_a_twentieth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when a bucket that wins by less is used, and when a batch takes a larger bucket's."""
    rig = _Rig(tmp_path, {64: 0.5, 96: 1 / 1.04, 128: 1 / 1.06, 192: 1.0, 256: 2.0})

    graphed = rig.graphed()

    assert graphed is not None
    assert graphed.graphs == 2
    chance = random.Random(2)
    for tokens, is_replayed in [(1, True), (64, True), (65, False), (96, False), (97, True),
                                (128, True), (129, False), (256, False), (257, False)]:  # fmt: skip
        batch = _of_tokens(chance, tokens)
        rows = _replayed(graphed, batch)
        assert (rows is not None) == is_replayed, tokens
        if rows is not None:
            assert np.abs(rows - _ordinary(rig.encoder, batch)).max() <= 1e-5
    (told,) = _told(capsys, "cuda_graphs_measured")
    assert told["graphs"] == 2
    assert told["gains"] == {"64": 2.0, "96": 1.04, "128": 1.06, "192": 1.0, "256": 0.5}


def test_a_gain_is_that_of_medians_and_both_take_turns() -> None:
    """Red with means, and when one way runs all of its rounds before the other begins."""
    clock = _Clock()
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
    rig = _Rig(tmp_path)
    graphed = rig.graphed()
    assert graphed is not None
    assert graphed.graphs == len(_SIZES)
    chance = random.Random(3)

    for _ in range(60):
        batch = _of_tokens(chance, chance.randint(1, _BUDGET))
        rows = _replayed(graphed, batch)
        assert rows is not None
        assert np.abs(rows - _ordinary(rig.encoder, batch)).max() <= 1e-5


def test_trials_give_their_memory_back_and_the_largest_is_recorded_first(tmp_path: Path) -> None:
    """Red when a trial's recorder stays open, and when small graphs are recorded before large."""
    rig = _Rig(tmp_path)
    graphed = rig.graphed()
    assert graphed is not None
    *trials, last = rig.recorders
    assert [one.recorded for one in trials] == [[size] for size in _SIZES]
    assert not any(one.open for one in trials)
    assert last.recorded == _SIZES[::-1]
    assert last.open
    graphed.close()
    assert not any(one.open for one in rig.recorders)
    assert _replayed(graphed, _batch(random.Random(4), 5)) is None


@pytest.mark.parametrize(("most", "kept"), [(100_000, 5), (640, 4), (479, 3), (63, 0)])
def test_graphs_take_no_more_memory_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, kept: int
) -> None:
    """Red when the bound is not looked at: all five are kept."""
    monkeypatch.setattr(torch_graphs, "MOST_BYTES", most)
    rig = _Rig(tmp_path)
    rig.bytes_of = lambda tokens: tokens

    graphed = rig.graphed()

    assert (graphed.graphs if graphed is not None else 0) == kept
    assert sum(one.held_bytes for one in rig.recorders) <= most
    held = [one for one in rig.recorders if one.open and one.recorded]
    assert len(held) == (1 if kept else 0)


@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
@pytest.mark.parametrize("failing", [0, 3, len(_SIZES)])
def test_a_capture_that_fails_leaves_the_ordinary_forward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: int, kind: type[Exception]
) -> None:
    """Red when recorders that were made before, or the failing one, stay open.

    Also when an error of another kind, as another release of torch raises, ends the load.
    """
    rig = _Rig(tmp_path)

    class _Failing(_Recorder):
        def record(self, run: Callable[[], None]) -> Callable[[], None]:
            if len(rig.recorders) > failing and (failing < len(_SIZES) or len(self.recorded) == 2):
                raise kind("operation not permitted when stream is capturing")
            return super().record(run)

    def recorder() -> _Recorder:
        made = _Failing(rig.clock, rig.seconds, rig.bytes_of)
        rig.recorders.append(made)
        return made

    rig.recorder = recorder  # type: ignore[method-assign]

    assert rig.graphed() is None

    assert len(rig.recorders) == failing + 1
    assert not any(one.open for one in rig.recorders)
    (told,) = _told(capsys, "cuda_graphs_failed")
    assert (told["error"], told["serving"]) == (kind.__name__, False)


def test_replays_that_give_other_vectors_do_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = _Rig(tmp_path)
    right = PackedEncoder.positions_of
    calls = iter(range(1 << 20))

    def wrong(self: PackedEncoder, ids: TokenIds) -> TokenIds:
        return right(self, ids) if next(calls) % 2 else right(self, ids)[::-1]

    monkeypatch.setattr(PackedEncoder, "positions_of", wrong)

    assert rig.graphed() is None

    assert not any(one.open for one in rig.recorders)
    (told,) = _told(capsys, "cuda_graphs_disagree")
    assert told["cosine"] < 0.999


def _load(folder: Path, **settings: Any) -> LoadedModel:
    chosen = EmbedSettings(backend="torch", token_budget=_BUDGET, **settings)
    return asyncio.run(load(FolderSource(ModelId("small"), folder), chosen))


def _ids(model: LoadedModel, route: str = "") -> list[TokenIds]:
    chance = random.Random(6)
    texts = [" ".join(chance.choices(WORDS, k=count)) for count in (0, 1, 5, 20, 30, 60)]
    encoded = model.encoder.encode(texts, Truncation.END, route)
    return [item.ids for item in encoded if isinstance(item, EncodedText)]


@pytest.fixture
def rig_of_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Rig:
    """Recorders that loading finds for the CPU; whatever they record wins."""
    rig = _Rig(tmp_path / "rig")
    monkeypatch.setattr(torch_loading, "recorders_for", lambda _: rig.recorder)
    monkeypatch.setattr(torch_graphs, "LEAST_GAIN", 0.0)
    return rig


def test_there_is_nothing_to_record_on_a_cpu(tmp_path: Path) -> None:
    assert recorders_for("cpu") is None
    assert _load(save_random_model(tmp_path, "bert")).backend.info.graphs == 0


def test_a_model_is_loaded_with_graphs_unless_they_are_switched_off(
    tmp_path: Path, rig_of_load: _Rig
) -> None:
    """Red when the setting does not reach the backend."""
    folder = save_random_model(tmp_path, "bert")
    off = _load(folder, cuda_graphs="off")
    assert off.backend.info.graphs == 0
    assert not rig_of_load.recorders

    model = _load(folder)

    assert model.backend.info.graphs == len(_SIZES)
    ids = _ids(model)
    for start in range(len(ids)):
        for batch in (ids[start:], [*ids, *ids, *ids][start:]):  # the second has no bucket
            rows = model.backend.infer(batch)
            assert np.abs(rows - off.backend.infer(batch)).max() <= 1e-5
    model.backend.close()
    assert not any(one.open for one in rig_of_load.recorders)


def test_a_replay_that_fails_while_serving_is_the_last(
    tmp_path: Path, rig_of_load: _Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when the error reaches the caller, or replays go on."""
    model = _load(save_random_model(tmp_path, "bert"))
    assert isinstance(model.backend, PackedTorchBackend)
    before = model.backend.infer(ids := _ids(model))
    last = rig_of_load.recorders[-1]
    last.break_after = 1

    for _ in range(3):
        assert np.abs(model.backend.infer(ids) - before).max() <= 1e-5

    assert model.backend.info.graphs == 0
    assert not last.open
    (told,) = _told(capsys, "cuda_graphs_failed")
    assert (told["error"], told["serving"]) == ("RuntimeError", True)


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_two_threads_get_the_rows_of_their_own_batches(
    tmp_path: Path, rig_of_load: _Rig, graphs: str
) -> None:
    """Red when a batch is laid out while another one is: they share what replays read and write."""
    model = _load(save_random_model(tmp_path, "bert"), cuda_graphs=graphs)
    ids = _ids(model)
    batches = [ids[start:] + ids[:start] for start in range(len(ids))] + [[one] for one in ids]
    expected = [model.backend.infer(batch) for batch in batches]

    def run(seed: int) -> float:
        chance = random.Random(seed)
        worst = 0.0
        for at in chance.choices(range(len(batches)), k=60):
            worst = max(worst, float(np.abs(model.backend.infer(batches[at]) - expected[at]).max()))
        return worst

    with ThreadPoolExecutor(2) as threads:
        assert max(threads.map(run, range(2))) <= 1e-5
    model.backend.close()


def test_an_engine_that_keeps_other_graphs_is_the_same_engine(tmp_path: Path) -> None:
    """Red when the number is compared: a rebuilt engine measures anew, and would not serve."""
    info = _load(save_random_model(tmp_path, "bert")).backend.info

    assert replace(info, graphs=3) == info
    assert replace(info, dimensions=3) != info


async def test_the_number_of_graphs_is_told_while_the_model_is_loaded() -> None:
    """Red when it is read once: after a replay that failed it would still be told."""
    backend = HashingBackend()

    def tell(graphs: int) -> None:
        backend._info = replace(backend.info, graphs=graphs)

    tell(4)
    before = _told_graphs()
    async with served(backend) as model:
        assert _told_graphs() == before + 4
        tell(1)
        await model.embed(["text"], DOCUMENT)
        assert _told_graphs() == before + 1
    assert _told_graphs() == before


def _told_graphs() -> float:
    told = REGISTRY.get_sample_value("lodestone_embed_cuda_graphs")
    assert told is not None
    return told


def test_every_route_of_a_model_has_graphs_of_its_own(tmp_path: Path, rig_of_load: _Rig) -> None:
    model = _load(save_random_router(tmp_path))
    info = model.backend.info

    assert info.graphs == 2 * len(_SIZES)
    padded = _load(tmp_path / "router", torch_attention="padded")
    for route in info.all_routes:
        ids = _ids(model, route)
        product = model.backend.infer(ids, route) * padded.backend.infer(ids, route)
        assert product.sum(axis=1).min() > 0.9999
    assert padded.backend.info.graphs == 0
