"""`Rerank` with a small cross-encoder: the library's scores, whatever else is asked for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.embed.v1 import model_service_pb2 as model_pb
from lodestone.embed.v1 import model_service_pb2_grpc as model_grpc
from lodestone.embed.v1 import rerank_service_pb2 as rerank_pb
from lodestone.embed.v1 import rerank_service_pb2_grpc as rerank_grpc
from services.embed.app import EmbedApp
from services.embed.backends.loading import load
from services.embed.backends.protocol import LoadedModel
from services.embed.canary import agreement
from services.embed.model import ModelId, ModelSpec, Score
from services.embed.sources import FolderSource
from services.embed.specs import specs_of
from services.runtime.errors import OverloadedError
from services.runtime.exits import StartError
from services.runtime.status import read_rpc_error
from tests.support.tiny_models import change_json, make_model, make_reranker
from tests.unit.embed.harness import bundled_folder, service, settings_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from services.embed.model import TokenIds, Vectors
    from services.embed.reranking import ServedReranker

pytestmark = pytest.mark.slow

EMBEDDER = "models/embedder"
RERANKER = "models/tiny"
QUERY = "how is a cookie parsed"
TEXTS = ["def parse_cookie(raw): ...", "", "class Router:\n    pass", "word " * 300, "é日本 \0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder that reads 64 tokens."""
    return make_reranker(tmp_path_factory.mktemp("rerankers") / "tiny", bundled_folder())


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    """The same model in the library's own hands."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu", local_files_only=True)


def _expected(library: Any, query: str, texts: Sequence[str]) -> list[float]:
    scores: list[float] = library.predict([(query, text) for text in texts]).tolist()
    return scores


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that embeds, for the same backend."""
    return make_model(tmp_path_factory.mktemp("models") / "embedder", bundled_folder())


@pytest.fixture
async def channel(address: str, embedder: Path, folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A service with both, run by torch in this process."""
    async with _serving(address, embedder, folder) as opened:
        yield opened


def _serving(address: str, embedder: Path, folder: Path) -> Any:
    return service(
        address,
        model=str(embedder),
        reranker=str(folder),
        backend="torch",
        isolation="none",
        model_admin=True,
        model_dirs=(folder.parent,),
    )


async def _settled(channel: grpc.aio.Channel) -> model_pb.Model:
    """Returns the reranker once it serves, or does not load."""
    models = model_grpc.ModelServiceStub(channel)
    while True:
        found = await models.GetModel(model_pb.GetModelRequest(name=RERANKER))
        if found.model.state != model_pb.Model.STATE_LOADING:
            return found.model
        await asyncio.sleep(0.01)


async def _rerank(channel: grpc.aio.Channel, texts: Sequence[str], **fields: Any) -> Any:
    await _settled(channel)
    stub = rerank_grpc.RerankServiceStub(channel)
    return await stub.Rerank(rerank_pb.RerankRequest(**{"query": QUERY, "texts": texts, **fields}))


async def test_scores_are_those_of_the_library(channel: grpc.aio.Channel, library: Any) -> None:
    """Red when token types are left out, or the activation, or another text is cut."""
    answer = await _rerank(channel, TEXTS)
    long_query = "where " * 100
    longer = await _rerank(channel, TEXTS, query=long_query, model=RERANKER)

    expected = _expected(library, QUERY, TEXTS)
    assert max(expected) - min(expected) > 0.05  # the scores tell texts apart
    assert [item.score for item in answer.results] == pytest.approx(expected, abs=1e-4)
    assert [item.truncated for item in answer.results] == [False, False, False, True, False]
    assert answer.results[3].token_count == 64
    assert [item.score for item in longer.results] == pytest.approx(
        _expected(library, long_query, TEXTS), abs=1e-4
    )
    assert all(item.truncated for item in longer.results)
    assert len(answer.model_fingerprint) == 32


async def test_scores_pass_the_models_own_activation(tmp_path: Path) -> None:
    """Red when a model of logits, as most that rank are, is given the activation of others."""
    from sentence_transformers import CrossEncoder

    folder = make_reranker(tmp_path / "tiny", bundled_folder())
    names = {"activation_fn": "torch.nn.modules.linear.Identity"}
    change_json(folder / "config.json", sentence_transformers=names)
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)

    async with _served(folder) as served:
        outcomes = await served.rerank(QUERY, TEXTS)

    values = [outcome.value for outcome in outcomes if isinstance(outcome, Score)]
    assert values == pytest.approx(_expected(model, QUERY, TEXTS), abs=1e-4)
    assert max(values) < 0


async def test_a_score_does_not_depend_on_the_other_texts(channel: grpc.aio.Channel) -> None:
    together = await _rerank(channel, [*TEXTS, *(f"def f{n}(): return {n}" for n in range(40))])
    apart = [await _rerank(channel, [text]) for text in TEXTS]

    alone = [answer.results[0].score for answer in apart]
    assert [item.score for item in together.results[: len(TEXTS)]] == pytest.approx(alone, abs=1e-5)


async def test_each_model_does_what_it_is_for(channel: grpc.aio.Channel) -> None:
    await _rerank(channel, ["text"])
    listed = await model_grpc.ModelServiceStub(channel).ListModels(model_pb.ListModelsRequest())
    options = pb.EmbedOptions(purpose=pb.PURPOSE_QUERY)
    with pytest.raises(grpc.aio.AioRpcError) as embedded:
        await embed_grpc.EmbedServiceStub(channel).Embed(
            pb.EmbedRequest(model=RERANKER, options=options, texts=["x"])
        )
    with pytest.raises(grpc.aio.AioRpcError) as scored:
        await _rerank(channel, ["x"], model=EMBEDDER)
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await _rerank(channel, ["x"], model="models/other")

    kinds = {model.name: (model.reranks, model.dimensions) for model in listed.models}
    assert kinds == {EMBEDDER: (False, 32), RERANKER: (True, 0)}
    assert [model.is_default for model in listed.models] == [True, False]
    refusals = [read_rpc_error(each.value).reason for each in (embedded, scored, unknown)]
    assert refusals == ["ERROR_REASON_INVALID_REQUEST"] * 2 + ["ERROR_REASON_MODEL_NOT_LOADED"]


async def test_a_reranker_is_unloaded_and_loaded_as_other_models_are(
    channel: grpc.aio.Channel, library: Any
) -> None:
    """Red when a folder that is loaded by a call is taken for one that embeds."""
    models = model_grpc.ModelServiceStub(channel)
    await _settled(channel)
    await models.UnloadModel(model_pb.UnloadModelRequest(name=RERANKER))
    stub = rerank_grpc.RerankServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as off:
        await stub.Rerank(rerank_pb.RerankRequest(query=QUERY, texts=["x"]))
    with pytest.raises(grpc.aio.AioRpcError) as bundled:
        await models.LoadModel(
            model_pb.LoadModelRequest(model_id="tiny", source="minilm", reranks=True)
        )

    loaded = await models.LoadModel(
        model_pb.LoadModelRequest(model_id="tiny", source="tiny", reranks=True)
    )
    answer = await _rerank(channel, TEXTS)

    assert read_rpc_error(off.value).reason == "ERROR_REASON_STATE_CONFLICT"
    assert read_rpc_error(bundled.value).reason == "ERROR_REASON_INVALID_REQUEST"
    assert loaded.model.reranks
    assert [item.score for item in answer.results] == pytest.approx(
        _expected(library, QUERY, TEXTS), abs=1e-4
    )


class _Spoiling:
    """A backend that raises on one pair, and gives a number that is none for another."""

    def __init__(self, inner: Any, raises: TokenIds, spoils: TokenIds) -> None:
        self._inner, self._raises, self._spoils = inner, raises, spoils

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def infer(self, batch: Sequence[TokenIds], route: str = "") -> Vectors:
        if any(np.array_equal(ids, self._raises) for ids in batch):
            raise RuntimeError("an engine error")
        rows: Vectors = np.array(self._inner.infer(batch, route))
        for at, ids in enumerate(batch):
            if np.array_equal(ids, self._spoils):
                rows[at] = np.nan
        return rows


async def test_a_pair_that_fails_and_a_score_that_is_no_number_fail_alone(
    folder: Path, library: Any
) -> None:
    """Red when scores are checked like vectors of length one, or not at all."""
    before = _counted("bad_score")
    async with _served(folder) as model:
        outcomes = await model.rerank(QUERY, [*TEXTS, "raises", "spoils"])

    *good, raised, spoiled = outcomes
    assert [item.value for item in good if isinstance(item, Score)] == pytest.approx(
        _expected(library, QUERY, TEXTS), abs=1e-4
    )
    reasons = [getattr(item, "reason", "") for item in (raised, spoiled)]
    assert reasons == ["ERROR_REASON_BAD_VECTOR"] * 2
    assert _counted("bad_score") == before + 2


async def test_a_call_that_what_waits_would_make_late_is_refused_at_once(folder: Path) -> None:
    """Red when a call's deadline does not reach the queue."""
    before = _counted("overloaded")
    async with _served(folder) as model:
        long = asyncio.create_task(model.rerank(QUERY, ["word " * 100] * 256))
        await asyncio.sleep(0)  # it is in the queue
        with pytest.raises(OverloadedError) as late:
            await model.rerank(QUERY, TEXTS, deadline_seconds=0.001)
        outcomes = await long

    assert late.value.retry_after_seconds is not None
    assert _counted("overloaded") == before + len(TEXTS)
    assert all(isinstance(outcome, Score) for outcome in outcomes)


@contextlib.asynccontextmanager
async def _served(folder: Path) -> AsyncIterator[ServedReranker]:
    """Yields the model behind a queue of its own, with a backend that stumbles over two texts."""
    settings = settings_of(backend="torch", isolation="none")
    spec = ModelSpec(ModelId("tiny"), str(folder), "torch", "float32", reranks=True)
    loaded = await load(FolderSource(spec.model_id, folder, reranks=True), settings)
    encoder: Any = loaded.encoder
    raises, spoils = (item.ids for item in encoder.encode_pairs(QUERY, ["raises", "spoils"]))
    app = EmbedApp(settings)
    backend: Any = _Spoiling(loaded.backend, raises, spoils)
    model = app.serve_reranker(LoadedModel(backend, encoder), spec)
    try:
        yield model
    finally:
        await model.close()
        await app.close()


def _counted(outcome: str) -> float:
    name = "lodestone_embed_reranked_texts_total"
    return REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0


@pytest.mark.parametrize(("numbers", "without"), [(3, ()), (1, ("tokenizer.json", "vocab.txt"))])
async def test_a_model_that_gives_no_scores_costs_the_reranker_alone(
    address: str, embedder: Path, tmp_path: Path, numbers: int, without: Sequence[str]
) -> None:
    """Red when the service does not start for it, or serves what means nothing."""
    folder = make_reranker(tmp_path / "tiny", bundled_folder(), numbers=numbers)
    for name in without:
        (folder / name).unlink()
    async with _serving(address, embedder, folder) as channel:
        found = await _settled(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _rerank(channel, ["x"])

    assert found.state == model_pb.Model.STATE_FAILED
    assert ("no tokenizer" if without else "3 numbers a pair") in found.error.message
    assert str(tmp_path) not in found.error.message
    assert read_rpc_error(refused.value).reason == "ERROR_REASON_MODEL_NOT_LOADED"


def test_a_start_tells_which_setting_names_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(StartError) as missing:
        specs_of(settings_of(reranker=str(tmp_path / "none")))
    with pytest.raises(StartError) as empty:
        specs_of(settings_of(reranker=str(tmp_path)))

    for refused in (missing, empty):
        assert refused.value.message.startswith("LODESTONE_EMBED_RERANKER=")
        assert "hashing" not in refused.value.message


def test_scores_agree_by_their_spread() -> None:
    """Red when scores are compared by their cosine: of one number it is its sign alone."""
    scores = np.array([[-8.0], [0.5], [11.0]], dtype=np.float32)

    assert agreement(scores, scores, scores=True) == 1
    assert agreement(scores + np.float32(0.019), scores, scores=True) == pytest.approx(0.999, 1e-3)
    assert agreement(scores * 2, scores, scores=True) < 0.5
    assert agreement(scores[:2], scores, scores=True) == -1
    assert agreement(scores * np.float32(np.nan), scores, scores=True) == -1
