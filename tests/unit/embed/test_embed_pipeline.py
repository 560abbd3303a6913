"""Which models load, how, and what is said of those that must not serve."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer

from services.embed.backends import pipeline
from services.embed.backends.sentence_transformers import load_torch
from services.embed.backends.suitability import UnsupportedModelError
from services.embed.model import EncodedText, Prompts, Truncation
from tests.support.random_models import WIDTH, save_random_model, save_random_router

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BOOBY_TRAP = "raise SystemExit(77)\n"


def _static(folder: Path) -> Path:
    plain = save_random_model(folder / "parts", "bert")
    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    module = StaticEmbedding(tokenizer, embedding_dim=WIDTH)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder / "static"))
    return folder / "static"


def _without_prompt(folder: Path) -> Path:
    plain = str(save_random_model(folder / "parts", "bert"))
    modules = [Transformer(plain), Pooling(WIDTH, "mean", include_prompt=False)]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "word1 "})
    model.save(str(folder / "without"))
    return folder / "without"


def _code_of_its_own(folder: Path) -> Path:
    model = save_random_model(folder, "bert")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.C", "AutoModel": "odd.M"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "odd.py").write_text(BOOBY_TRAP)
    return model


def _module_of_its_own(folder: Path) -> Path:
    model = save_random_model(folder, "bert")
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["type"] = "odd.Transformer"
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "odd.py").write_text(BOOBY_TRAP)
    return model


def _route_of_its_own(folder: Path) -> Path:
    model = save_random_router(folder)
    listed = model / "router_config.json"
    config = json.loads(listed.read_text())
    config["types"] = dict.fromkeys(config["types"], "odd.Transformer")
    listed.write_text(json.dumps(config))
    for folder_of_module in (model, *(path for path in model.iterdir() if path.is_dir())):
        (folder_of_module / "odd.py").write_text(BOOBY_TRAP)
    return model


def _cut_weights(folder: Path) -> Path:
    model = save_random_model(folder, "bert")
    weights = next(model.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    return model


def _no_tokenizer(folder: Path) -> Path:
    model = save_random_model(folder, "bert")
    for path in list(model.rglob("tokenizer*")):
        path.unlink()
    return model


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (save_random_router, "Router"),
        (_static, "StaticEmbedding"),
        (_without_prompt, "leaves its prompt out"),
        (_code_of_its_own, "custom code"),
        (_module_of_its_own, "third-party code"),
        (_route_of_its_own, "third-party code"),
        (_cut_weights, "deserializing"),
        (_no_tokenizer, "no tokenizer"),
    ],
)
def test_a_model_that_must_not_serve_says_why(
    tmp_path: Path, build: Callable[[Path], Path], why: str
) -> None:
    """Red when code that comes with a model is run: the test's process ends.

    Red as well without the check for a tokenizer: the library makes one up that knows no word.
    """
    folder = build(tmp_path)

    with pytest.raises(UnsupportedModelError, match=why) as error:
        pipeline.load_model(folder, device="cpu")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("attention", ["auto", "padded"])
def test_a_shortened_model_gives_short_vectors_of_length_one(
    tmp_path: Path, attention: str
) -> None:
    """Red when the cut comes after the normalising, or not at all."""
    whole = save_random_model(tmp_path, "bert")
    folder = tmp_path / "short"
    SentenceTransformer(str(whole), device="cpu", truncate_dim=8).save(str(folder))
    texts = ["word1 word2", "word3"]

    model = load_torch(
        folder, precision="float32", attention=attention, token_budget=0, max_text_chars=1000
    )
    encoded = model.encoder.encode(texts, Truncation.END)
    rows = model.backend.infer([item.ids for item in encoded if isinstance(item, EncodedText)])

    library = SentenceTransformer(str(folder), device="cpu")
    expected = library.encode(texts, normalize_embeddings=True)
    assert model.backend.info.dimensions == 8
    assert np.allclose(rows, expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    uncut = load_torch(
        whole, precision="float32", attention=attention, token_budget=0, max_text_chars=1000
    )
    assert uncut.backend.info.identity != model.backend.info.identity


def test_weights_of_16_bits_are_loaded_as_float32(tmp_path: Path) -> None:
    """Red when the file decides: the float32 vectors that others are held to would be rounded."""
    plain = save_random_model(tmp_path, "bert")
    folder = tmp_path / "short-numbers"
    SentenceTransformer(str(plain), device="cpu").bfloat16().save(str(folder))

    model = pipeline.load_model(folder, device="cpu")

    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"query": "q: ", "document": "d: "}, Prompts(query="q: ", document="d: ")),
        ({"query": "q: ", "passage": "p: "}, Prompts(query="q: ", document="p: ")),
        ({"query": "q: ", "corpus": "c: "}, Prompts(query="q: ", document="c: ")),
        ({"query": "q: "}, Prompts(query="q: ")),
        ({}, Prompts()),
    ],
)
def test_prompts_are_found_by_the_names_that_the_library_knows(
    tmp_path: Path, prompts: dict[str, Any], expected: Prompts
) -> None:
    folder = save_random_model(tmp_path, "bert", prompts=prompts or None)

    assert pipeline.prompts_of(pipeline.load_model(folder, device="cpu")) == expected


def test_a_folder_without_modules_is_pooled_by_the_mean(tmp_path: Path) -> None:
    """As transformers saves a model: the library's own rule."""
    saved = save_random_model(tmp_path, "bert")
    folder = tmp_path / "plain"
    folder.mkdir()
    for path in saved.iterdir():
        if path.is_file() and "sentence" not in path.name and path.name != "modules.json":
            shutil.copy(path, folder)

    model = pipeline.load_model(folder, device="cpu")

    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
