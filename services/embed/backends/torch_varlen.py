"""Encoders of the BERT family on texts that lie end to end: no forward spends work on padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from services.embed.backends.pipeline import dimensions_of
from services.embed.backends.torch_attention import Segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer

    from services.embed.backends.torch_attention import Attention
    from services.embed.model import TokenIds

FAMILY: Final = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})
"""Types of models that this module knows: absolute positions, post-normalised layers."""
_POOLINGS = frozenset({"mean", "cls", "lasttoken"})
_LATER_MODULES = frozenset({"Dense", "Dropout", "LayerNorm", "Normalize"})
"""Modules after the pooling that work on sentence vectors alone."""


def why_not_packed(model: SentenceTransformer) -> str:
    """Returns what of a model this module does not know; empty when it runs the model."""
    names = [type(module).__name__ for module in model]
    if names[:2] != ["Transformer", "Pooling"] or not set(names[2:]) <= _LATER_MODULES:
        return "modules"
    encoder: Any = model[0].auto_model
    config = encoder.config
    if config.model_type not in FAMILY or type(encoder).__name__.endswith("ForMaskedLM"):
        return "architecture"
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute" or getattr(config, "is_decoder", False):
        return "attention"
    if _pooling_of(model) not in _POOLINGS:
        return "pooling"
    return ""


def _pooling_of(model: SentenceTransformer) -> object:
    pooling: Any = model[1]
    return pooling.pooling_mode


class PackedEncoder(torch.nn.Module):
    """A sentence-transformers model for rows of texts; it shares all weights with the original.

    The model must be one for which `why_not_packed` says nothing. Query, key and value of a layer
    become views of one matrix, so that one product makes all three.
    """

    def __init__(self, model: SentenceTransformer, attention: Attention) -> None:
        super().__init__()
        encoder: Any = model[0].auto_model
        self._embeddings: Any = encoder.embeddings
        self._layers = torch.nn.ModuleList(
            _Layer(layer, attention) for layer in encoder.encoder.layer
        )
        self._pooling = _pooling_of(model)
        self.dimensions = dimensions_of(model)
        self._later = torch.nn.ModuleList(list(model)[2:])
        # RoBERTa and its kin count positions from behind the padding's id, BERT from zero.
        self._padding_id: int | None = getattr(encoder.embeddings, "padding_idx", None)

    def forward(self, batch: Sequence[TokenIds]) -> torch.Tensor:
        """Returns vectors of shape (texts, dimensions), not yet of length one."""
        segments = Segments([len(ids) for ids in batch], self.device)
        ids = _to_device(np.concatenate(batch), self.device)
        positions = np.concatenate([self.positions_of(ids) for ids in batch])
        return self.vectors(ids, _to_device(positions, self.device), segments)

    def vectors(
        self, ids: torch.Tensor, positions: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        """Returns vectors of shape (segments, dimensions), not yet of length one.

        `ids` and `positions` have shape (tokens,). A segment that is empty gets any vector.
        """
        hidden = self._embed(ids, positions)
        for layer in self._layers:
            hidden = layer(hidden, segments)
        features = {"sentence_embedding": self._pool(hidden, segments)}
        for module in self._later:
            features = module(features)
        return features["sentence_embedding"][:, : self.dimensions]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        device: torch.device = self._embeddings.word_embeddings.weight.device
        return device

    def positions_of(self, ids: TokenIds) -> TokenIds:
        """Returns the position of each token of a text, shape (tokens,)."""
        if self._padding_id is None:
            return np.arange(len(ids), dtype=np.int64)
        # A text may hold the padding's own token; it gets the padding's position there.
        counts = ids != self._padding_id
        positions: TokenIds = np.cumsum(counts) * counts + self._padding_id
        return positions

    def _embed(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        parts = self._embeddings
        tokens = parts.word_embeddings(ids) + parts.token_type_embeddings.weight[0]
        embedded: torch.Tensor = parts.LayerNorm(tokens + parts.position_embeddings(positions))
        return embedded

    def _pool(self, hidden: torch.Tensor, segments: Segments) -> torch.Tensor:
        bounds = segments.bounds
        match self._pooling:
            case "cls":
                # An empty segment may begin at the end of the row.
                return hidden[bounds[:-1].clamp(max=len(hidden) - 1)]
            case "lasttoken":
                return hidden[bounds[1:] - 1]
            case _:
                # Sums by segment are the same whatever the neighbours; sums by index are not.
                # Unsafe means unchecked: to check the bounds would be to wait for them.
                sums = torch.segment_reduce(
                    hidden.float(), "sum", offsets=bounds.long(), unsafe=True
                )
                counts = (bounds[1:] - bounds[:-1]).clamp(min=1).unsqueeze(1)
                return (sums / counts).to(hidden.dtype)


class _Layer(torch.nn.Module):
    """One layer: attention within each text, then the feed-forward part, each normalised after."""

    def __init__(self, layer: Any, attention: Attention) -> None:
        super().__init__()
        attending = layer.attention.self
        self._weight, self._bias = _fused((attending.query, attending.key, attending.value))
        self._heads: int = attending.num_attention_heads
        self._attention = attention
        self._after_attention: Any = layer.attention.output
        self._widen: Any = layer.intermediate
        self._narrow: Any = layer.output

    def forward(self, hidden: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Returns the layer's output, shape (tokens, width)."""
        fused = torch.nn.functional.linear(hidden, self._weight, self._bias)
        query, key, value = fused.view(len(hidden), 3, self._heads, -1).unbind(1)
        attended = self._attention(query, key, value, segments).flatten(1)
        hidden = self._after_attention(attended, hidden)
        narrowed: torch.Tensor = self._narrow(self._widen(hidden), hidden)
        return narrowed


def _fused(parts: Sequence[torch.nn.Linear]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns weights and biases of several projections as one; theirs become views of it."""
    width = parts[0].out_features
    weight = torch.cat([part.weight.detach() for part in parts])
    bias = torch.cat([part.bias.detach() for part in parts])
    for at, part in enumerate(parts):
        part.weight.data = weight[at * width : (at + 1) * width]
        part.bias.data = bias[at * width : (at + 1) * width]
    return weight, bias


def _to_device(array: TokenIds, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # from pinned memory the copy runs beside the host's work
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
