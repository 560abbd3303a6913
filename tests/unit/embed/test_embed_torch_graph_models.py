"""Models that are loaded and serve with recorded forwards, on the CPU."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from services.embed.backends import sentence_transformers as torch_loading
from services.embed.backends import torch_graphs
from services.embed.backends.hashing import HashingBackend
from services.embed.backends.loading import load
from services.embed.backends.torch_packed import PackedTorchBackend
from services.embed.backends.torch_recorder import recorders_for
from services.embed.model import EncodedText, ModelId, Truncation
from services.embed.settings import EmbedSettings
from services.embed.sources import FolderSource
from tests.support.random_models import WORDS, save_random_model, save_random_router
from tests.unit.embed.graph_rig import BUDGET, SIZES, GraphRig, events_told
from tests.unit.embed.harness import DOCUMENT, served

if TYPE_CHECKING:
    from pathlib import Path

    from services.embed.backends.protocol import LoadedModel
    from services.embed.model import TokenIds

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _load(folder: Path, **settings: Any) -> LoadedModel:
    chosen = EmbedSettings(backend="torch", token_budget=BUDGET, **settings)
    return asyncio.run(load(FolderSource(ModelId("small"), folder), chosen))


def _ids(model: LoadedModel, route: str = "") -> list[TokenIds]:
    chance = random.Random(6)
    texts = [" ".join(chance.choices(WORDS, k=count)) for count in (0, 1, 5, 20, 30, 60)]
    encoded = model.encoder.encode(texts, Truncation.END, route)
    return [item.ids for item in encoded if isinstance(item, EncodedText)]


@pytest.fixture
def rig_of_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> GraphRig:
    """Recorders that loading finds for the CPU; whatever they record wins."""
    rig = GraphRig(tmp_path / "rig")
    monkeypatch.setattr(torch_loading, "recorders_for", lambda _: rig.recorder)
    monkeypatch.setattr(torch_graphs, "LEAST_GAIN", 0.0)
    return rig


def test_there_is_nothing_to_record_on_a_cpu(tmp_path: Path) -> None:
    assert recorders_for("cpu") is None
    assert _load(save_random_model(tmp_path, "bert")).backend.info.graphs == 0


def test_a_model_is_loaded_with_graphs_unless_they_are_switched_off(
    tmp_path: Path, rig_of_load: GraphRig
) -> None:
    """Red when the setting does not reach the backend."""
    folder = save_random_model(tmp_path, "bert")
    off = _load(folder, cuda_graphs="off")
    assert off.backend.info.graphs == 0
    assert not rig_of_load.recorders

    model = _load(folder)

    assert model.backend.info.graphs == len(SIZES)
    ids = _ids(model)
    for start in range(len(ids)):
        for batch in (ids[start:], [*ids, *ids, *ids][start:]):  # the second has no bucket
            rows = model.backend.infer(batch)
            assert np.abs(rows - off.backend.infer(batch)).max() <= 1e-5
    model.backend.close()
    assert not any(one.open for one in rig_of_load.recorders)


def test_a_replay_that_fails_while_serving_is_the_last(
    tmp_path: Path, rig_of_load: GraphRig, capsys: pytest.CaptureFixture[str]
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
    (told,) = events_told(capsys, "cuda_graphs_failed")
    assert (told["error"], told["serving"]) == ("RuntimeError", True)


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_two_threads_get_the_rows_of_their_own_batches(
    tmp_path: Path, rig_of_load: GraphRig, graphs: str
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


def test_every_route_of_a_model_has_graphs_of_its_own(
    tmp_path: Path, rig_of_load: GraphRig
) -> None:
    model = _load(save_random_router(tmp_path))
    info = model.backend.info

    assert info.graphs == 2 * len(SIZES)
    padded = _load(tmp_path / "router", torch_attention="padded")
    for route in info.all_routes:
        ids = _ids(model, route)
        product = model.backend.infer(ids, route) * padded.backend.infer(ids, route)
        assert product.sum(axis=1).min() > 0.9999
    assert padded.backend.info.graphs == 0
