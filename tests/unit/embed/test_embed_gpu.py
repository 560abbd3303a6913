"""What only a CUDA device can show: `pytest -m gpu`. Without one these are skipped."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc
from services.embed.backends import torch_graphs
from services.embed.backends.cross_encoder import load_torch_reranker
from services.embed.backends.precision import canary_ids
from services.embed.backends.protocol import OutOfMemoryError
from services.embed.backends.sentence_transformers import load_torch
from services.embed.backends.torch_packed import PackedTorchBackend
from services.embed.backends.torch_static import StaticEncoder
from services.embed.canary import LEAST_SCORE_AGREEMENT, agreement
from services.embed.model import EncodedText, Precision, Truncation
from tests.support.random_models import WORDS, save_random_model, with_numbers_beyond_float16
from tests.support.tiny_models import make_reranker
from tests.unit.embed.harness import bundled_folder, engine_process, service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.embed.backends.protocol import Backend, LoadedModel
    from services.embed.backends.torch_static import Bucket
    from services.embed.model import TokenIds, Vectors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def _load(precision: str, attention: str = "auto", graphs: str = "auto") -> LoadedModel:
    return load_torch(
        bundled_folder(),
        precision=precision,
        attention=attention,
        graphs=graphs,
        token_budget=0,
        max_text_chars=1 << 20,
    )


@pytest.fixture(params=["float16", "bfloat16"], scope="module")
def model(request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    """The bundled model on the GPU, without padding."""
    loaded = _load(request.param)
    yield loaded
    loaded.backend.close()


def _ids(model: LoadedModel, count: int = 64) -> list[TokenIds]:
    chance = random.Random(5)
    texts = ["", "x"] + [
        " ".join(chance.choices(["def", "return", "value", "(", ")", "for", "cache"], k=length))
        for length in chance.choices(range(1, 400), k=count - 2)
    ]
    encoded = model.encoder.encode(texts, Truncation.END)
    return [item.ids for item in encoded if isinstance(item, EncodedText)]


@pytest.fixture(params=["float16", "bfloat16"])
def ordinary_and_graphed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Backend, Backend]]:
    """The bundled model without graphs, and with one for every bucket, whatever it wins."""
    monkeypatch.setattr(torch_graphs, "LEAST_GAIN", 0.0)
    ordinary = _load(request.param, graphs="off").backend
    graphed = _load(request.param).backend
    assert (ordinary.info.graphs, graphed.info.padded) == (0, False)
    yield ordinary, graphed
    ordinary.close()
    graphed.close()


def _batches(model: LoadedModel, count: int) -> list[list[TokenIds]]:
    """Batches of one token to a full budget, in any order."""
    chance = random.Random(9)
    ids = _ids(model)
    most = model.backend.info.token_budget
    batches = []
    for _ in range(count):
        tokens = int(most ** chance.random())
        batch = [chance.choice(ids)[: max(1, tokens)]]
        while sum(map(len, batch)) < tokens:
            batch.append(chance.choice(ids)[: tokens - sum(map(len, batch))])
        batches.append(batch)
    return batches


def _least_cosine(left: Vectors, right: Vectors) -> float:
    return float(np.einsum("ij,ij->i", left, right, dtype=np.float64).min())


def test_the_bundled_model_runs_without_padding(model: LoadedModel) -> None:
    """Red when the kernel is missing or refuses its arguments: the trial falls back to padding."""
    assert isinstance(model.backend, PackedTorchBackend)


def test_vectors_agree_with_float32(model: LoadedModel) -> None:
    exact = _load("float32")
    ids = _ids(model)

    assert exact.backend.info.padded is True
    assert _least_cosine(model.backend.infer(ids), exact.backend.infer(ids)) > 0.999
    exact.backend.close()


def test_a_vector_does_not_depend_on_its_neighbours(model: LoadedModel) -> None:
    ids = _ids(model)
    alone = np.concatenate([model.backend.infer([one]) for one in ids])

    for seed in range(5):
        chosen = random.Random(seed).choices(range(len(ids)), k=48)
        rows = model.backend.infer([ids[at] for at in chosen])
        assert _least_cosine(rows, alone[chosen]) > 0.9999


def test_the_same_batch_gives_the_same_bytes(model: LoadedModel) -> None:
    """Red when sums by segment are atomic additions in any order."""
    ids = _ids(model)

    assert len({model.backend.infer(ids).tobytes() for _ in range(5)}) == 1


def test_two_threads_get_the_rows_of_their_own_batches(
    model: LoadedModel, ordinary_and_graphed: tuple[Backend, Backend]
) -> None:
    """Red when a batch is copied over what a replay of the last one still reads, or its rows."""
    batches = _batches(model, 40)
    for backend in ordinary_and_graphed:
        assert backend.info.concurrency == 2
        expected = [backend.infer(batch) for batch in batches]

        def run(seed: int, backend: Backend = backend, expected: list[Vectors] = expected) -> bool:
            order = random.Random(seed).choices(range(len(batches)), k=150)
            return all(
                _least_cosine(backend.infer(batches[at]), expected[at]) > 0.9999 for at in order
            )

        with ThreadPoolExecutor(2) as threads:
            assert all(threads.map(run, range(2)))


def test_a_result_outlives_the_next_forward(model: LoadedModel) -> None:
    ids = _ids(model)
    first = model.backend.infer(ids)
    kept = first.copy()

    for _ in range(5):
        model.backend.infer(ids[::-1])

    assert np.array_equal(first, kept)


def test_a_batch_beyond_the_memory_is_told_and_a_small_one_runs_after(model: LoadedModel) -> None:
    ids = _ids(model)
    before = model.backend.infer(ids)
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(OutOfMemoryError):
            model.backend.infer(ids * 2000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert np.allclose(model.backend.infer(ids), before, atol=1e-3)


def test_replays_agree_with_ordinary_forwards_in_any_order(
    model: LoadedModel, ordinary_and_graphed: tuple[Backend, Backend]
) -> None:
    """Red when captures fail, when one graph writes into another's memory, or a copy is late."""
    ordinary, graphed = ordinary_and_graphed
    batches = _batches(model, 60)
    expected = [ordinary.infer(batch) for batch in batches]

    assert graphed.info.graphs == 17
    first = [graphed.infer(batch) for batch in batches]
    for rows, wanted in zip(first, expected, strict=True):
        assert _least_cosine(rows, wanted) > 0.9999
    for seed in range(5):
        order = random.Random(seed).sample(range(len(batches)), k=len(batches))
        assert all(np.array_equal(graphed.infer(batches[at]), first[at]) for at in order)
    assert graphed.info.graphs == 17


def test_graphs_take_bounded_memory_and_give_it_back(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when replays allocate, when trials keep their memory, or a closed model does."""
    monkeypatch.setattr(torch_graphs, "LEAST_GAIN", 0.0)
    batches = _batches(model, 60)
    plain = _load("float16", graphs="off")
    for batch in batches:
        plain.backend.infer(batch)
    torch.cuda.empty_cache()
    without = torch.cuda.memory_reserved()

    graphed = _load("float16")
    torch.cuda.empty_cache()
    weights = sum(path.stat().st_size for path in bundled_folder().rglob("*.safetensors"))
    loaded = torch.cuda.memory_reserved()
    assert loaded - without < torch_graphs.MOST_BYTES + 2 * weights
    for _ in range(10):
        for batch in batches:
            graphed.backend.infer(batch)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= loaded + (64 << 20)  # workspaces of the ordinary stream
    graphed.backend.close()
    del graphed
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= without + weights + (128 << 20)
    plain.backend.close()


def test_a_capture_that_fails_leaves_a_gpu_that_works(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when the stream of the capture stays the current one, or the error reaches the load."""
    run = StaticEncoder.run

    def asking(self: StaticEncoder, bucket: Bucket) -> None:
        run(self, bucket)
        self.rows(1).sum().item()

    monkeypatch.setattr(StaticEncoder, "run", asking)
    stream = torch.cuda.current_stream()
    failed = _load(str(model.backend.info.precision))

    assert failed.backend.info.graphs == 0
    assert "cuda_graphs_failed" in capsys.readouterr().err
    assert torch.cuda.current_stream() == stream
    ids = _ids(model)
    assert _least_cosine(failed.backend.infer(ids), model.backend.infer(ids)) > 0.9999
    failed.backend.close()


# Other models than the bundled one.


def _of_folder(folder: Path) -> LoadedModel:
    return load_torch(
        folder, precision="auto", attention="auto", token_budget=0, max_text_chars=1 << 20
    )


_RANDOM_TEXTS = [" ".join(WORDS[at : at + count]) for at, count in enumerate([0, 1, 2, 7, 7, 44])]


def _least_to_the_library(model: LoadedModel, folder: Path) -> float:
    encoded = model.encoder.encode(_RANDOM_TEXTS, Truncation.END)
    rows = model.backend.infer([item.ids for item in encoded if isinstance(item, EncodedText)])
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    exact: Vectors = library.encode(_RANDOM_TEXTS, batch_size=1, normalize_embeddings=True)
    return _least_cosine(rows, exact)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("bert", {"pooling": "cls", "dense": 16}),
        ("roberta", {}),
        ("xlm-roberta", {"pooling": "lasttoken"}),
        ("camembert", {}),
    ],
)
def test_models_of_the_family_agree_with_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, extra: dict[str, Any]
) -> None:
    """Red with positions from zero in RoBERTa, without padding and in the graphs."""
    folder = save_random_model(tmp_path, kind, **extra)
    monkeypatch.setattr(torch_graphs, "LEAST_GAIN", 0.0)
    model = _of_folder(folder)

    assert isinstance(model.backend, PackedTorchBackend)
    assert model.backend.info.precision is Precision.FLOAT16
    assert model.backend.info.graphs > 0
    assert _least_to_the_library(model, folder) >= 0.999
    model.backend.close()


def test_a_model_of_another_family_runs_with_padding(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "mpnet")
    model = _of_folder(folder)

    assert model.backend.info.padded is True
    assert _least_to_the_library(model, folder) >= 0.999
    model.backend.close()


def test_numbers_beyond_float16_are_found_out_when_a_model_is_loaded(tmp_path: Path) -> None:
    """Red when float16 is taken untried: every vector is none."""
    folder = with_numbers_beyond_float16(save_random_model(tmp_path, "bert"))
    model = _of_folder(folder)

    assert model.backend.info.precision in {Precision.BFLOAT16, Precision.FLOAT32}
    assert _least_to_the_library(model, folder) >= 0.999
    model.backend.close()


def test_a_reranker_gives_the_scores_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_reranker(tmp_path / "reranker", bundled_folder())
    limits = {"token_budget": 0, "max_text_chars": 1 << 20}
    model = load_torch_reranker(folder, precision="auto", **limits)
    with monkeypatch.context() as on_cpu:
        on_cpu.setattr(torch.cuda, "is_available", lambda: False)
        exact = load_torch_reranker(folder, precision="float32", **limits)

    texts = canary_ids(model.encoder)
    rows, expected = model.backend.infer(texts), exact.backend.infer(texts)
    assert agreement(rows, expected, scores=True) >= LEAST_SCORE_AGREEMENT
    model.backend.close()


async def test_an_engine_on_the_gpu_is_rebuilt_after_a_kill(address: str) -> None:
    """Its process has the GPU for itself: the next one gives the same vectors, graphs or not."""
    async with service(address, model="minilm", backend="auto") as channel:
        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
        request = pb.EmbedRequest(
            model="models/all-minilm-l6-v2",
            options=pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT, truncation=pb.TRUNCATION_END),
            texts=[f"def function_{n}(): return {n}" for n in range(64)],
        )
        before = await stub.Embed(request, timeout=60)
        engine_process().kill()
        after = await stub.Embed(request, timeout=120)

    rows = [
        np.array([np.frombuffer(one.embedding.vector, "<f4") for one in answer.results])
        for answer in (before, after)
    ]
    assert _least_cosine(*rows) > 0.9999
