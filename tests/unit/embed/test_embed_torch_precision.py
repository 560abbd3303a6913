"""16 bits on a GPU are tried before they serve; here on the CPU, which computes in them as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from services.embed.backends import cross_encoder, sentence_transformers
from services.embed.backends.cross_encoder import load_torch_reranker
from services.embed.backends.sentence_transformers import load_torch
from services.embed.model import EncodedText, Precision, Truncation
from services.runtime.exits import ExitCode, StartError
from tests.support.random_models import WORDS, save_random_model, with_numbers_beyond_float16
from tests.support.tiny_models import make_reranker
from tests.unit.embed.harness import bundled_folder

if TYPE_CHECKING:
    from pathlib import Path

    from services.embed.backends.protocol import LoadedModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OF_A_GPU = (Precision.FLOAT16, Precision.BFLOAT16, Precision.FLOAT32)
_TEXTS = ["", WORDS[0], " ".join(WORDS[:30])]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `auto` try what it tries on a GPU."""
    plain = sentence_transformers.precisions_on
    for module in (sentence_transformers, cross_encoder):
        monkeypatch.setattr(
            module,
            "precisions_on",
            lambda wanted, device: OF_A_GPU if wanted == "auto" else plain(wanted, device),
        )


def _load(folder: Path, precision: str = "auto") -> LoadedModel:
    return load_torch(
        folder, precision=precision, attention="auto", token_budget=0, max_text_chars=1 << 20
    )


def test_float16_serves_where_it_agrees_with_float32(tmp_path: Path) -> None:
    model = _load(save_random_model(tmp_path, "bert"))

    assert model.backend.info.precision is Precision.FLOAT16


def test_a_model_whose_numbers_float16_does_not_hold_serves_in_another_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when float16 is taken untried: every text then fails, as its vector is none."""
    folder = with_numbers_beyond_float16(save_random_model(tmp_path, "bert"))
    model = _load(folder)

    assert model.backend.info.precision is Precision.BFLOAT16
    assert "precision_disagrees" in capsys.readouterr().err
    encoded = model.encoder.encode(_TEXTS, Truncation.END)
    rows = model.backend.infer([item.ids for item in encoded if isinstance(item, EncodedText)])
    library = SentenceTransformer(str(folder), device="cpu").encode(
        _TEXTS, batch_size=1, normalize_embeddings=True
    )
    assert np.einsum("ij,ij->i", rows, library).min() >= 0.999


def test_a_precision_that_was_asked_for_and_disagrees_does_not_serve(tmp_path: Path) -> None:
    folder = with_numbers_beyond_float16(save_random_model(tmp_path, "bert"))

    with pytest.raises(StartError) as failure:
        _load(folder, "float16")

    assert failure.value.code is ExitCode.MODEL
    assert "LODESTONE_EMBED_PRECISION" in failure.value.message


def test_a_reranker_is_tried_by_its_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when its precision is taken untried."""
    folder = make_reranker(tmp_path / "reranker", bundled_folder())
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["bert.encoder.layer.0.intermediate.dense.weight"] *= 1e7
    tensors["bert.encoder.layer.0.output.dense.weight"] *= 1e-7
    save_file(tensors, weights, metadata={"format": "pt"})

    model = load_torch_reranker(folder, precision="auto", token_budget=0, max_text_chars=1 << 20)

    assert model.backend.info.precision is not Precision.FLOAT16
    assert "precision_disagrees" in capsys.readouterr().err
    encoded = model.encoder.encode(_TEXTS, Truncation.END)
    rows = model.backend.infer([item.ids for item in encoded if isinstance(item, EncodedText)])
    assert np.isfinite(rows).all()
