"""Small sentence-transformers models with random weights, made on the spot: nothing is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 32
POSITIONS = 48
"""Tokens of a text that a model reads; RoBERTa's table has two rows more."""
WORDS = [f"word{n}" for n in range(200)]
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def save_random_model(
    folder: Path,
    kind: str,
    *,
    pooling: Any = "mean",
    dense: int = 0,
    prompts: dict[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """Writes a model of a kind that transformers names (`bert`, `roberta`); returns its folder."""
    torch.manual_seed(seed)
    encoder = folder / "encoder"
    # Weights ten times as wide as usual: positions and neighbours then show in the vectors.
    config = transformers.AutoConfig.for_model(kind, **_sizes(kind), initializer_range=0.2)
    model_of_config: Any = transformers.AutoModel.from_config
    model_of_config(config).save_pretrained(encoder)
    _tokenizer(kind).save_pretrained(encoder)
    modules: list[Any] = [Transformer(str(encoder)), Pooling(WIDTH, pooling)]
    if dense:
        modules.append(Dense(WIDTH, dense))
    model = SentenceTransformer(modules=[*modules, Normalize()], device="cpu", prompts=prompts)
    target = folder / "model"
    model.save(str(target))
    return target


def with_numbers_beyond_float16(folder: Path) -> Path:
    """Gives a saved model a layer whose numbers float16 does not hold; those of the next are small.

    Returns its folder
    """
    model = SentenceTransformer(str(folder), device="cpu")
    first: Any = model[0]
    layer = first.auto_model.encoder.layer[0]
    layer.intermediate.dense.weight.data *= 1e5
    layer.output.dense.weight.data *= 1e-5
    model.save(str(folder))
    return folder


def save_random_router(
    folder: Path,
    *,
    prompts: dict[str, str] | None = None,
    query_tokens: int = POSITIONS // 2,
    narrow: int = 0,
) -> Path:
    """Writes a model with a network for queries and another for documents; returns its folder.

    Architectures, weights, poolings and lengths differ; a text's ids do not. `query_tokens` is what
    the query's network reads, `narrow` gives its vectors another length.
    """
    kinds = [("bert", "mean", query_tokens), ("roberta", "cls", POSITIONS)]
    routes: list[list[Any]] = []
    for seed, (kind, pooling, length) in enumerate(kinds):
        saved = save_random_model(folder / kind, kind, pooling=pooling, seed=seed)
        model = SentenceTransformer(str(saved), device="cpu")
        model.max_seq_length = length
        routes.append(list(model))
    if narrow:
        routes[0].insert(2, Dense(WIDTH, narrow))
    query, document = routes
    SentenceTransformer(
        modules=[Router.for_query_document(query, document)],
        device="cpu",
        prompts=prompts,
    ).save(str(folder / "router"))
    return folder / "router"


def _sizes(kind: str) -> dict[str, Any]:
    from_behind_padding = kind in {"roberta", "xlm-roberta", "camembert", "mpnet"}
    names = {
        "vocab_size": len(_SPECIAL) + len(WORDS),
        "max_position_embeddings": POSITIONS + (2 if from_behind_padding else 0),
        "pad_token_id": 1,
    }
    if kind == "distilbert":
        return {**names, "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    return {
        **names,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }


def _tokenizer(kind: str) -> Any:
    vocabulary = {word: at for at, word in enumerate([*_SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = ["input_ids", "attention_mask"]
    tokenizer_class: Any = transformers.PreTrainedTokenizerFast
    return tokenizer_class(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_input_names=[*names, "token_type_ids"] if kind == "bert" else names,
    )
