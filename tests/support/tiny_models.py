"""Small sentence-transformers folders: a random BERT with the bundled tokenizer, in a second."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_COPIED = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def make_model(
    folder: Path,
    tokenizer_from: Path,
    *,
    dimensions: int = 32,
    seed: int = 1,
    prompts: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model of one layer with random weights; returns its folder.

    Args:
        folder: where it is written; must not be there.
        tokenizer_from: a model's folder, whose tokenizer it gets.
        dimensions: the length of its vectors.
        seed: decides the weights.
        prompts: what it wants before texts, by name.
        config: more entries of its `config.json`.
    """
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    vocabulary = len((tokenizer_from / "vocab.txt").read_text(encoding="utf-8").splitlines())
    bert = BertConfig(
        vocab_size=vocabulary,
        hidden_size=dimensions,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    BertModel(bert).save_pretrained(folder)
    for name in _COPIED:
        shutil.copy(tokenizer_from / name, folder / name)
    if config:
        change_json(folder / "config.json", **config)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    _write(folder / "1_Pooling" / "config.json", _pooling(dimensions))
    _write(folder / "modules.json", _modules("Transformer", "Pooling", "Normalize"))
    _write(folder / "config_sentence_transformers.json", {"prompts": dict(prompts or {})})
    return folder


def make_reranker(
    folder: Path, tokenizer_from: Path, *, seed: int = 1, numbers: int = 1, tokens: int = 64
) -> Path:
    """Writes a cross-encoder of two layers with random weights; returns its folder.

    Args:
        folder: where it is written; must not be there.
        tokenizer_from: a model's folder, whose tokenizer it gets.
        seed: decides the weights.
        numbers: what it gives for a pair; one is a score.
        tokens: most tokens of a pair.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    vocabulary = len((tokenizer_from / "vocab.txt").read_text(encoding="utf-8").splitlines())
    # Weights ten times as wide as usual: words, places and types then show in the scores.
    bert = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=tokens,
        initializer_range=0.2,
    )
    bert.num_labels = numbers
    model = BertForSequenceClassification(bert)
    with torch.no_grad():
        model.classifier.bias.fill_(-2.0)  # scores are then no lengths that a vector may have
    model.save_pretrained(folder)
    for name in _COPIED:
        shutil.copy(tokenizer_from / name, folder / name)
    change_json(folder / "tokenizer_config.json", model_max_length=tokens)
    return folder


def change_json(path: Path, **fields: Any) -> None:
    """Replaces fields of a JSON file."""
    _write(path, {**json.loads(path.read_text()), **fields})


def without_normalising(folder: Path) -> None:
    """Takes the last module from a model."""
    _write(folder / "modules.json", _modules("Transformer", "Pooling"))


def _modules(*kinds: str) -> list[dict[str, object]]:
    return [
        {
            "idx": at,
            "name": str(at),
            "path": f"{at}_{kind}" if at else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for at, kind in enumerate(kinds)
    ]


def _pooling(dimensions: int) -> dict[str, object]:
    return {
        "word_embedding_dimension": dimensions,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
