"""Models with a network for queries and another for documents: each text takes its own."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from services.embed.app import EmbedApp
from services.embed.backends.protocol import LoadedModel
from services.embed.backends.sentence_transformers import load_torch
from services.embed.backends.suitability import UnsupportedModelError
from services.embed.hosting.life import LoadRequest
from services.embed.hosting.process import EngineProcess
from services.embed.model import (
    Embedding,
    EmbedOptions,
    EncodedText,
    Lane,
    ModelId,
    Purpose,
    Truncation,
    Vectors,
)
from services.embed.sources import FolderSource
from services.embed.specs import specs_of
from tests.support.random_models import POSITIONS, WIDTH, WORDS, save_random_router
from tests.unit.embed.harness import settings_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
TEXTS = [" ".join(WORDS[start : start + length]) for start, length in enumerate(range(1, 40, 3))]
TEXTS += ["", " ".join(WORDS[: POSITIONS * 2])]
LEAST_COSINE = 0.9999


@pytest.fixture(scope="module", params=[None, {"query": "word7 ", "document": "word8 word9 "}])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two networks, without prompts and with them."""
    return save_random_router(tmp_path_factory.mktemp("router"), prompts=request.param)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[Purpose, Vectors]:
    """The library's vectors of the texts, by purpose."""
    library = SentenceTransformer(str(folder), device="cpu")
    return {
        Purpose.QUERY: np.asarray(library.encode_query(TEXTS), dtype=np.float32),
        Purpose.DOCUMENT: np.asarray(library.encode_document(TEXTS), dtype=np.float32),
    }


def _load(folder: Path, attention: str = "auto") -> LoadedModel:
    return load_torch(
        folder, precision="float32", attention=attention, token_budget=0, max_text_chars=10_000
    )


def _cosines(rows: Vectors, expected: Vectors) -> Vectors:
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    cosines: Vectors = np.einsum("ij,ij->i", rows, expected) / norms
    return cosines


@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize("purpose", list(Purpose))
def test_vectors_of_a_route_are_those_of_the_library(
    folder: Path, expected: dict[Purpose, Vectors], attention: str, purpose: Purpose
) -> None:
    """Red when a purpose takes the other's network, tokenizer or length."""
    model = _load(folder, attention)
    info = model.backend.info
    route = info.route_of(purpose)
    prompted = [info.identity.prompts.of(purpose) + text for text in TEXTS]
    encoded = model.encoder.encode(prompted, Truncation.END, route)

    rows = model.backend.infer([one.ids for one in encoded if isinstance(one, EncodedText)], route)

    assert info.dimensions == WIDTH
    assert _cosines(rows, expected[purpose]).min() >= LEAST_COSINE


async def test_neighbours_of_another_purpose_change_no_vector(
    folder: Path, expected: dict[Purpose, Vectors]
) -> None:
    """All texts of both purposes wait at once, in one lane, in front of an engine's process.

    Red when a batch takes the route of its first text; without prompts also when equal texts of
    two purposes share a forward: both tokenizers give the same ids.
    """
    settings = settings_of(model=str(folder), backend="torch", precision="float32")
    engine = EngineProcess(
        LoadRequest(FolderSource(ModelId("router"), folder), settings, 0),
        hang_seconds=settings.hang_seconds,
        rebuild_seconds=settings.rebuild_seconds,
        load_seconds=settings.load_seconds,
        tell=lambda _: None,
    )
    app = EmbedApp(settings)
    try:
        encoder = await asyncio.to_thread(engine.wait_until_loaded)
        (spec,) = specs_of(settings)
        model = app.serve(LoadedModel(engine, encoder), spec)
        calls = [
            model.embed([text], EmbedOptions(purpose, truncation=Truncation.END, lane=Lane.BULK))
            for text in TEXTS
            for purpose in Purpose
        ]
        answers = [outcome for (outcome,) in await asyncio.gather(*calls)]
        await model.close()
    finally:
        await asyncio.to_thread(engine.close)
        await app.close()

    vectors = [
        np.frombuffer(one.vector, dtype=np.float32) for one in answers if isinstance(one, Embedding)
    ]
    rows = np.stack(vectors).reshape(len(TEXTS), len(Purpose), WIDTH)
    for at, purpose in enumerate(Purpose):
        assert _cosines(rows[:, at], expected[purpose]).min() >= LEAST_COSINE


def test_which_network_serves_which_purpose_is_part_of_the_identity(tmp_path: Path) -> None:
    """The routes are exchanged in the model's own list of them: no weight changes.

    Red when that list is left out: the tokenizers and the lengths are the same here.
    """
    plain = save_random_router(tmp_path, query_tokens=POSITIONS)
    before = _load(plain).backend.info.identity
    assert _load(plain).backend.info.identity == before

    listed = plain / "router_config.json"
    config = json.loads(listed.read_text())
    structure = config["structure"]
    structure["query"], structure["document"] = structure["document"], structure["query"]
    listed.write_text(json.dumps(config))

    after = _load(plain).backend.info.identity
    assert after != before
    assert after.weights == before.weights


def test_routes_of_different_lengths_are_refused(tmp_path: Path) -> None:
    narrow = save_random_router(tmp_path, narrow=8)

    with pytest.raises(UnsupportedModelError, match="different lengths: document 32, query 8"):
        _load(narrow)
