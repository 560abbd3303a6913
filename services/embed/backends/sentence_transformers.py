"""Runs any sentence-transformers model with torch: on a GPU when there is one, else on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from services.embed.backends import pipeline
from services.embed.backends.memory import memory_errors_told
from services.embed.backends.padding import pad
from services.embed.backends.protocol import BackendInfo, LoadedModel
from services.embed.model import Precision
from services.embed.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from services.embed.model import ModelIdentity, TokenIds, Vectors

_CPU_TOKEN_BUDGET = 1024
_GPU_TOKEN_BUDGET = 16384
_DTYPES = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
}


def load_torch(
    folder: Path, *, precision: str, token_budget: int, max_text_chars: int
) -> LoadedModel:
    """Returns a model, ready to run. Blocks for seconds.

    Raises:
        UnsupportedModelError: the model needs what this backend does not do.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = pipeline.load_model(folder, device=device)
    if precision == "auto":
        chosen = Precision.FLOAT16 if device == "cuda" else Precision.FLOAT32
    else:
        chosen = Precision(precision)
    identity = pipeline.identity_of(model, folder)
    tokenizer = Tokenizer.from_str(pipeline.tokenizer_json(model))
    default_budget = _GPU_TOKEN_BUDGET if device == "cuda" else _CPU_TOKEN_BUDGET
    backend = TorchBackend(
        pipeline.Pipeline(model).to(_DTYPES[chosen]),
        identity,
        device=device,
        precision=chosen,
        token_types=pipeline.uses_token_types(model),
        token_budget=token_budget or default_budget,
    )
    encoder = ModelTokenizer(
        tokenizer, max_tokens=identity.max_tokens, max_text_chars=max_text_chars
    )
    return LoadedModel(backend, encoder)


class TorchBackend:
    """A torch module that one thread feeds; torch itself uses all cores."""

    def __init__(
        self,
        module: pipeline.Pipeline,
        identity: ModelIdentity,
        *,
        device: str,
        precision: Precision,
        token_types: bool,
        token_budget: int,
    ) -> None:
        self._module: pipeline.Pipeline | None = module
        self._device = device
        self._token_types = token_types
        self._info = BackendInfo(
            name="torch",
            precision=precision,
            dimensions=pipeline.dimensions_of(module.model),
            concurrency=1,
            token_budget=token_budget,
            identity=identity,
        )

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        return self._info

    def infer(self, batch: Sequence[TokenIds]) -> Vectors:
        """Returns one row per text, normalised again in float32."""
        assert self._module is not None
        with memory_errors_told(), torch.inference_mode():
            arrays = pad(batch, token_types=self._token_types)
            tensors = [torch.from_numpy(array).to(self._device) for array in arrays]
            rows = self._module(*tensors).float()
            rows = torch.nn.functional.normalize(rows, dim=-1)
            vectors: Vectors = rows.cpu().numpy()
        return vectors

    def close(self) -> None:
        """Releases the model's memory."""
        self._module = None
        if self._device == "cuda":
            torch.cuda.empty_cache()
