"""A cross-encoder of sentence-transformers as a function of token ids, for conversion and torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer

from services.embed.backends import pipeline
from services.embed.backends.precision import load_where_it_agrees, rows_alone
from services.embed.backends.protocol import BackendInfo, LoadedModel
from services.embed.backends.sentence_transformers import (
    DTYPES,
    TorchBackend,
    precisions_on,
    usual_budget,
)
from services.embed.backends.suitability import UnsupportedModelError, holds_tokenizer
from services.embed.backends.torch_device import device_of_choice
from services.embed.canary import CANARY_QUERY, CANARY_TEXTS
from services.embed.fingerprint import digest_of_files, digest_of_json, weight_files
from services.embed.model import ModelIdentity, Precision, Prompts, Vectors
from services.embed.pair_tokenizer import PairTokenizer

if TYPE_CHECKING:
    from pathlib import Path

_CONFIGS = frozenset({"config.json", "modules.json", "sentence_bert_config.json"})
_TASK = "sequence-classification"


class PairPipeline(torch.nn.Module):
    """A cross-encoder with its activation in one: (ids, mask[, types]) to scores."""

    def __init__(self, model: CrossEncoder) -> None:
        super().__init__()
        self.model = model
        activation: Any = model.activation_fn
        self.activation = activation

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns scores of shape (pairs, 1)."""
        features = pipeline.features_of(input_ids, attention_mask, token_type_ids)
        scores: torch.Tensor = self.activation(self.model(features)["scores"])
        return scores


def load_cross_encoder(folder: Path, *, device: str) -> CrossEncoder:
    """Returns a cross-encoder from local files alone; code that comes with it is not run.

    Raises:
        UnsupportedModelError: it does not load, or must not serve.
    """
    if not holds_tokenizer(folder):
        raise UnsupportedModelError("its folder holds no tokenizer")
    try:
        model = CrossEncoder(
            str(folder), device=device, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # noqa: BLE001 - each file format and architecture raises its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(lines[0]) from None
    why = _why_unsuitable(model)
    if why:
        raise UnsupportedModelError(why)
    ready: CrossEncoder = model.float().eval()
    return ready


def load_torch_reranker(
    folder: Path, *, precision: str, token_budget: int, max_text_chars: int
) -> LoadedModel:
    """Returns a cross-encoder, ready to run with torch. Blocks for seconds.

    Raises:
        UnsupportedModelError: the model needs what this backend does not do.
        StartError: in 16 bits, as was asked for, it gives other scores.
    """
    device = device_of_choice()

    def load_in(precision: Precision) -> tuple[LoadedModel, dict[str, Vectors]]:
        model = load_cross_encoder(folder, device=device)
        encoder = PairTokenizer(
            Tokenizer.from_str(pipeline.tokenizer_json(model)),
            max_tokens=pipeline.max_tokens_of(model),
            max_text_chars=max_text_chars,
        )
        info = BackendInfo(
            name="torch",
            precision=precision,
            dimensions=1,
            concurrency=1,
            token_budget=token_budget or usual_budget(device),
            identity=identity_of(model, folder),
            device=device,
            scores=True,
        )
        exact = {}
        if precision is not Precision.FLOAT32:
            exact[""] = rows_alone(LoadedModel(_backend(model, info, Precision.FLOAT32), encoder))
        return LoadedModel(_backend(model, info, precision), encoder), exact

    return load_where_it_agrees(load_in, precisions_on(precision, device))


def _backend(model: CrossEncoder, info: BackendInfo, precision: Precision) -> TorchBackend:
    module = PairPipeline(model).to(DTYPES[precision]).eval()
    token_types = pipeline.uses_token_types(model)
    return TorchBackend(module, info, device=info.device, token_types=token_types)


def identity_of(model: CrossEncoder, folder: Path) -> ModelIdentity:
    """Returns what decides the model's scores; reads the weights once."""
    configs = [path for path in folder.rglob("*.json") if path.name in _CONFIGS]
    return ModelIdentity(
        weights=digest_of_files(weight_files(folder), root=folder),
        tokenizer=digest_of_json(pipeline.tokenizer_facts(model)),
        pipeline={
            "configs": digest_of_files(configs, root=folder),
            "activation": type(model.activation_fn).__name__,
            "scores": True,
        },
        prompts=Prompts(),
        max_tokens=pipeline.max_tokens_of(model),
    )


def reference_scores(model: CrossEncoder) -> Vectors:
    """Returns the library's own float32 scores of the canary texts, of shape (texts, 1)."""
    pairs: Any = [(CANARY_QUERY, text) for text in CANARY_TEXTS]
    scores: Vectors = model.predict(pairs, batch_size=1)
    return scores.reshape(-1, 1)


def _why_unsuitable(model: CrossEncoder) -> str:
    """Returns why a model must not serve, though the library loads it; empty when it may."""
    first: Any = model[0]
    if len(model) != 1 or getattr(first, "transformer_task", "") != _TASK:
        return "it is no classifier of pairs: a text is wrapped into a chat, or scored by a module"
    if model.num_labels != 1:
        return f"it gives {model.num_labels} numbers a pair, not one score"
    if getattr(model.tokenizer, "backend_tokenizer", None) is None:
        return "it has no fast tokenizer (tokenizer.json)"
    if model.default_prompt_name and model.prompts.get(model.default_prompt_name):
        return "it wants a prompt before each pair"
    return ""
