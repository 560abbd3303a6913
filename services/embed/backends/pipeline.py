"""A sentence-transformers model as a function of token ids, for the conversion and for torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from services.embed.backends import routes
from services.embed.backends.suitability import UnsupportedModelError, why_unsuitable
from services.embed.fingerprint import digest_of_files, digest_of_json, weight_files
from services.embed.model import ModelIdentity, Prompts

if TYPE_CHECKING:
    from pathlib import Path

_PIPELINE_FILES = {
    "config.json",
    "modules.json",
    "router_config.json",
    "sentence_bert_config.json",
}
_MOST_TOKENS = 1 << 17
AnyModel: TypeAlias = SentenceTransformer | CrossEncoder


class Pipeline(torch.nn.Module):
    """All modules of a model in one: (ids, mask[, types]) to L2-normalised sentence vectors."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.dimensions = dimensions_of(model)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns vectors of shape (texts, dimensions)."""
        features = features_of(input_ids, attention_mask, token_type_ids)
        # A model may be saved with a shorter length than its last module has.
        vectors = self.model(features)["sentence_embedding"][:, : self.dimensions]
        return torch.nn.functional.normalize(vectors, dim=-1)


def features_of(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Returns what the library's modules read; each tensor has the shape (texts, tokens)."""
    features = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_type_ids is not None:
        features["token_type_ids"] = token_type_ids
    return features


def load_model(folder: Path, *, device: str) -> SentenceTransformer:
    """Returns a model from local files alone; code that comes with it is not run.

    Weights are float32 whatever the file holds: what to compute in is decided where it runs.

    Raises:
        UnsupportedModelError: it does not load, or must not serve.
    """
    model = _read(folder, device=device)
    _check(model, folder)
    return model


def load_routes(folder: Path, *, device: str) -> dict[str, SentenceTransformer]:
    """Returns the model of each purpose, as `load_model` would; one under "" when all share it.

    A purpose's own model is the modules of its route and those that all routes share.

    Raises:
        UnsupportedModelError: a route does not load, must not serve, or differs in dimensions.
    """
    whole = _read(folder, device=device)
    models = routes.split(whole, device=device) if routes.has_routes(whole) else {"": whole}
    for model in models.values():
        _check(model, folder)
    sizes = {route: dimensions_of(model) for route, model in models.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{route} {size}" for route, size in sizes.items())
        raise UnsupportedModelError(f"its routes give vectors of different lengths: {told}")
    return models


def _read(folder: Path, *, device: str) -> SentenceTransformer:
    try:
        model = SentenceTransformer(
            str(folder), device=device, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # noqa: BLE001 - each file format and architecture raises its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(lines[0]) from None
    return model.float().eval()


def _check(model: SentenceTransformer, folder: Path) -> None:
    why = why_unsuitable(model, folder, prompts_of(model))
    if why:
        raise UnsupportedModelError(why)


def tokenizer_json(model: AnyModel) -> str:
    """Returns the tokenizer as the `tokenizers` library reads it."""
    return str(model.tokenizer.backend_tokenizer.to_str())


def tokenizer_facts(model: AnyModel) -> object:
    """Returns what decides the ids of a text."""
    tokenizer = json.loads(tokenizer_json(model))
    # How it cuts and pads is changed by whoever used it last, and we do both ourselves.
    tokenizer["truncation"] = tokenizer["padding"] = None
    return tokenizer


def uses_token_types(model: AnyModel) -> bool:
    """Tells whether the model reads segment ids."""
    return "token_type_ids" in model.tokenizer.model_input_names


def max_tokens_of(model: AnyModel) -> int:
    """Returns the most tokens that the model reads of one text."""
    limits = [
        model.max_seq_length,
        model.tokenizer.model_max_length,
        _positions(model),
        _MOST_TOKENS,
    ]
    return min(int(limit) for limit in limits if limit)


def _positions(model: AnyModel) -> int:
    """Returns how many positions the model has learned; 0 when it has no table of them.

    RoBERTa and its kin count from behind the padding's id, and their configuration names the rows
    of the table: a text of as many tokens as that would read beyond its end.
    """
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            padding_id = getattr(module, "padding_idx", None)
            return table.num_embeddings - (0 if padding_id is None else padding_id + 1)
    return 0


def dimensions_of(model: SentenceTransformer) -> int:
    """Returns the length of the model's vectors."""
    dimensions = model.get_embedding_dimension()
    if dimensions is None:
        raise UnsupportedModelError("it does not tell the length of its vectors")
    return int(dimensions)


def prompts_of(model: SentenceTransformer) -> Prompts:
    """Returns what the model wants before documents and queries."""
    known: dict[str, Any] = {name: text for name, text in (model.prompts or {}).items() if text}
    default = str(known.get(model.default_prompt_name or "", ""))
    names = ("document", "passage", "corpus")
    document = next((known[name] for name in names if name in known), default)
    return Prompts(
        document=str(document),
        query=str(known.get("query") or default),
    )


def identity_of(model: SentenceTransformer, folder: Path) -> ModelIdentity:
    """Returns what decides the model's vectors; reads the weights once."""
    configs = [path for path in folder.rglob("*.json") if path.name in _PIPELINE_FILES]
    return ModelIdentity(
        weights=digest_of_files(weight_files(folder), root=folder),
        tokenizer=digest_of_json(tokenizer_facts(model)),
        pipeline={
            "configs": digest_of_files(configs, root=folder),
            "normalized": True,
            **({"cut_to": model.truncate_dim} if model.truncate_dim else {}),
        },
        prompts=prompts_of(model),
        max_tokens=max_tokens_of(model),
    )
