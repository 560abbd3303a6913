"""One contract for every backend: hashing, remote, OpenVINO in float32 and by default, torch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.embed.backends.loading import load
from services.embed.model import EncodedText, Precision, TokenIds, Truncation, Vectors
from services.embed.sources import resolve_source
from services.embed.vectors import good_rows
from tests.support.embeddings_api import serving_embeddings
from tests.unit.embed.harness import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.embed.backends.protocol import LoadedModel
    from tests.support.embeddings_api import EmbeddingsApi

CODE = [
    "",
    "x",
    "return None",
    "def add(left, right):\n    return left + right",
    "古いファイルを削除する。Удаляет старые файлы. 🎉🎉",
    "\0",
    "<|endoftext|>[SEP]",
    "SELECT id FROM users WHERE name = 'x'",
    *(
        f"def function_{n}(value):\n    return " + " + ".join(["value"] * n)
        for n in range(5, 90, 7)
    ),
    "\n".join(f"if value == {n}: return call_{n}(value)" for n in range(400)),
]
BACKENDS = {
    "hashing": {"model": "hashing"},
    "openvino-float32": {"model": "minilm", "backend": "openvino", "precision": "float32"},
    "openvino": {"model": "minilm", "backend": "openvino"},
    "torch": {"model": "minilm", "backend": "torch"},
}
REMOTE = {"remote": {"model": "openai:code-1"}}
NEURAL = [name for name in BACKENDS if name != "hashing"]


@pytest.fixture(scope="module")
def loaded_models() -> Iterator[dict[str, LoadedModel]]:
    models: dict[str, LoadedModel] = {}
    yield models
    for model in models.values():
        model.backend.close()


@pytest.fixture(scope="module")
def rows_alone() -> dict[int, Vectors]:
    """Vectors of `CODE` where each text had a batch of its own, by the model's id."""
    return {}


@pytest.fixture(scope="module")
def provider() -> Iterator[EmbeddingsApi]:
    """What the remote backend asks, over HTTP."""
    with serving_embeddings() as api:
        yield api


@pytest.fixture
async def loaded(
    request: pytest.FixtureRequest, loaded_models: dict[str, LoadedModel], provider: EmbeddingsApi
) -> LoadedModel:
    name = request.param
    if name not in loaded_models:
        fields = {"remote_url": provider.url, **{**BACKENDS, **REMOTE}[name]}
        wanted = settings_of(**fields)
        loaded_models[name] = await load(resolve_source(wanted), wanted)
    return loaded_models[name]


def _ids(model: LoadedModel, texts: Sequence[str]) -> list[TokenIds]:
    encoded = model.encoder.encode(texts, Truncation.END)
    return [item.ids for item in encoded if isinstance(item, EncodedText)]


def _least_cosine(left: Vectors, right: Vectors) -> float:
    return float(np.einsum("ij,ij->i", left, right, dtype=np.float64).min())


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
every_backend = pytest.mark.parametrize("loaded", [*BACKENDS, *REMOTE], indirect=True)
every_neural_backend = pytest.mark.parametrize("loaded", NEURAL, indirect=True)


@every_backend
def test_rows_are_float32_of_length_one_in_the_order_of_the_texts(loaded: LoadedModel) -> None:
    ids = _ids(loaded, CODE)

    rows = loaded.backend.infer(ids)
    backwards = loaded.backend.infer(ids[::-1])[::-1]

    assert rows.dtype == np.float32
    assert rows.shape == (len(CODE), loaded.backend.info.dimensions)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 5e-3
    assert _least_cosine(rows, backwards) > 0.9999


@every_backend
def test_a_vector_does_not_depend_on_its_neighbours(loaded: LoadedModel) -> None:
    ids = _ids(loaded, CODE)

    together = loaded.backend.infer(ids)
    alone = np.concatenate([loaded.backend.infer([one]) for one in ids])

    assert _least_cosine(together, alone) > 0.9999


@every_backend
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(choice=st.data())
def test_a_vector_is_the_same_whatever_its_order_and_companions(
    loaded: LoadedModel, rows_alone: dict[int, Vectors], choice: st.DataObject
) -> None:
    """A cache keyed by content holds only for such vectors.

    Red with quantisation by the batch's own scale (dynamic int8), with a mask that is left out, and
    with rows handed back in another order than that of the texts.
    """
    ids = _ids(loaded, CODE)
    if id(loaded) not in rows_alone:
        rows_alone[id(loaded)] = np.concatenate([loaded.backend.infer([one]) for one in ids])
    alone = rows_alone[id(loaded)]
    chosen = choice.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=12))

    rows = loaded.backend.infer([ids[at] for at in chosen])

    assert _least_cosine(rows, alone[chosen]) > 0.9999


@every_backend
def test_nothing_but_whole_finite_vectors_passes_the_check(loaded: LoadedModel) -> None:
    """What a backend gives for ordinary texts passes; spoilt rows never do."""
    rows = loaded.backend.infer(_ids(loaded, CODE))
    size = loaded.backend.info.dimensions
    assert all(good_rows(rows, dimensions=size))

    for spoil in (np.nan, np.inf, -np.inf, 1e30):
        spoilt = rows.copy()
        spoilt[3, 5] = spoil
        good = good_rows(spoilt, dimensions=size)
        assert [at for at, ok in enumerate(good) if not ok] == [3]
    spoilt = rows.copy()
    spoilt[2] = 0
    assert not good_rows(spoilt, dimensions=size)[2]
    assert not any(good_rows(rows[:, :-1], dimensions=size))


@every_backend
def test_the_same_batch_gives_the_same_bytes(loaded: LoadedModel) -> None:
    ids = _ids(loaded, CODE)

    assert loaded.backend.infer(ids).tobytes() == loaded.backend.infer(ids).tobytes()


@every_backend
def test_a_result_outlives_the_next_forward(loaded: LoadedModel) -> None:
    """Red when a backend hands out memory of the engine: the second forward overwrites it."""
    ids = _ids(loaded, CODE[:2])
    first = loaded.backend.infer(ids[:1])
    kept = first.copy()

    loaded.backend.infer(ids[1:])

    assert np.array_equal(first, kept)


@every_backend
def test_a_text_without_tokens_does_no_harm_to_the_next(loaded: LoadedModel) -> None:
    """No tokenizer makes one; some engines raise on it, others answer."""
    ids = _ids(loaded, CODE[:4])
    before = loaded.backend.infer(ids)

    with contextlib.suppress(Exception):
        loaded.backend.infer([np.array([], dtype=np.int64)])

    assert loaded.backend.infer(ids).tobytes() == before.tobytes()


@pytest.fixture(scope="module")
def reference() -> Vectors:
    """What the library itself answers in float32, text by text."""
    from sentence_transformers import SentenceTransformer

    source = resolve_source(settings_of(model="minilm"))
    model = SentenceTransformer(str(source.folder), device="cpu", local_files_only=True)  # type: ignore[union-attr]
    vectors: Vectors = model.encode(CODE, batch_size=1, normalize_embeddings=True)
    return vectors


@every_neural_backend
def test_vectors_agree_with_sentence_transformers(loaded: LoadedModel, reference: Vectors) -> None:
    rows = loaded.backend.infer(_ids(loaded, CODE))

    exact = loaded.backend.info.precision is Precision.FLOAT32
    assert _least_cosine(rows, reference) > (0.99999 if exact else 0.999)


async def test_backends_of_one_model_share_its_identity(
    loaded_models: dict[str, LoadedModel],
) -> None:
    """Fingerprints differ by backend and precision alone."""
    for name in NEURAL:
        if name not in loaded_models:
            wanted = settings_of(**BACKENDS[name])
            loaded_models[name] = await load(resolve_source(wanted), wanted)

    first, *others = (loaded_models[name].backend.info.identity for name in NEURAL)

    assert all(identity == first for identity in others)
    assert first.max_tokens == 256
