"""The fingerprint changes with all that changes a vector; prompts reach the model."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.embed.app import EmbedApp
from services.embed.backends.loading import load
from services.embed.fingerprint import fingerprint_of
from services.embed.model import (
    Embedding,
    EmbedOptions,
    ModelId,
    ModelIdentity,
    Precision,
    Prompts,
    Purpose,
    Truncation,
)
from services.embed.sources import resolve_source
from services.embed.specs import specs_of
from tests.support.tiny_models import change_json, make_model, without_normalising
from tests.unit.embed.harness import bundled_folder, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.embed.model import Vectors

IDENTITY = ModelIdentity(
    weights="w", tokenizer="t", pipeline={"pooling": "mean"}, prompts=Prompts(), max_tokens=256
)
QUERY_PROMPT = "Represent this question for searching code: "
DOCUMENT_PROMPT = "passage: "
CODE = "def open_file(path):\n    return open(path)"


def test_every_fact_of_a_model_its_precision_and_its_backend_count() -> None:
    """Red when a field is left out of the digest."""
    changed = {
        "weights": "x",
        "tokenizer": "x",
        "pipeline": {"pooling": "cls"},
        "prompts": Prompts(query="q"),
        "max_tokens": 128,
    }
    assert set(changed) == {field.name for field in fields(ModelIdentity)}
    others = [replace(IDENTITY, **{name: value}) for name, value in changed.items()]  # type: ignore[arg-type]

    prints = [
        fingerprint_of(identity, backend="openvino", precision=Precision.FLOAT32)
        for identity in (IDENTITY, *others, replace(IDENTITY, prompts=Prompts(document="q")))
    ]
    prints += [
        fingerprint_of(IDENTITY, backend="torch", precision=Precision.FLOAT32),
        fingerprint_of(IDENTITY, backend="openvino", precision=Precision.BFLOAT16),
    ]

    assert len(set(prints)) == len(prints)


def _other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\0\0\0\x3f"  # one number of the last tensor
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": _other_weights,
    "tokenizer": lambda folder: change_json(folder / "tokenizer_config.json", do_lower_case=False),
    "pooling": lambda folder: change_json(
        folder / "1_Pooling" / "config.json",
        pooling_mode_cls_token=True,
        pooling_mode_mean_tokens=False,
    ),
    "normalising": without_normalising,
    "architecture": lambda folder: change_json(folder / "config.json", hidden_act="relu"),
    "prompts": lambda folder: change_json(
        folder / "config_sentence_transformers.json", prompts={"query": "q: "}
    ),
    "length": lambda folder: change_json(folder / "sentence_bert_config.json", max_seq_length=64),
}


async def _fingerprint(folder: Path, **fields: Any) -> str:
    settings = settings_of(**{"model": str(folder), "backend": "torch", **fields})
    facts = (await load(resolve_source(settings), settings)).backend.info
    return fingerprint_of(facts.identity, backend=facts.name, precision=facts.precision)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_change_of_any_part_of_a_folder_is_another_model(tmp_path: Path) -> None:
    """Red when one of the files is not looked at; each is changed in a folder of its own."""
    bundled = bundled_folder()
    first = make_model(tmp_path / "first", bundled)
    again = make_model(tmp_path / "again", bundled)
    (again / "README.md").write_text("what does not decide a vector does not count")

    prints = {
        "": await _fingerprint(first),
        "precision": await _fingerprint(first, precision="bfloat16"),
    }
    for name, change in CHANGES.items():
        folder = make_model(tmp_path / name, bundled)
        change(folder)
        prints[name] = await _fingerprint(folder)

    assert len(set(prints.values())) == len(prints)
    assert await _fingerprint(again) == prints[""]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["torch", "openvino"])
async def test_each_purpose_gets_its_prompt_as_the_library_gives_it(
    tmp_path: Path, backend: str
) -> None:
    """Red when a prompt is dropped, or both purposes get one."""
    prompts = {"query": QUERY_PROMPT, "document": DOCUMENT_PROMPT}
    folder = make_model(
        tmp_path / "prompted",
        bundled_folder(),
        prompts=prompts,
        config={"matryoshka_dimensions": [8, 16, 32]},
    )
    settings = settings_of(
        model=str(folder), backend=backend, precision="float32", cache_dir=tmp_path / "cache"
    )
    app = EmbedApp(settings)
    await app.start()
    (spec,) = specs_of(settings)
    with app._registry.borrowed(ModelId(spec.model_id)) as model:
        sizes = model.info.matryoshka_dimensions
        got = {
            purpose: await model.embed([CODE], EmbedOptions(purpose, Truncation.END))
            for purpose in Purpose
        }
        cut = await model.embed([CODE], EmbedOptions(Purpose.QUERY, Truncation.END, dimensions=16))
    await app.close()

    for purpose in Purpose:
        (outcome,) = got[purpose]
        assert isinstance(outcome, Embedding)
        expected, tokens = _library(folder, prompts[str(purpose)] + CODE)
        assert outcome.token_count == tokens
        assert np.frombuffer(outcome.vector, "<f4") @ expected > 0.9999
    assert tuple(sizes) == (8, 16)
    assert isinstance(cut[0], Embedding)
    expected, _ = _library(folder, QUERY_PROMPT + CODE)
    shorter = expected[:16] / np.linalg.norm(expected[:16])
    assert np.frombuffer(cut[0].vector, "<f4") @ shorter > 0.9999


def _library(folder: Path, text: str) -> tuple[Vectors, int]:
    """Returns the library's own vector of a text as it is, and how many tokens it read."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    vectors: Vectors = model.encode([text], normalize_embeddings=True, prompt="")
    return vectors[0], len(model.tokenizer(text)["input_ids"])
