"""Runs any sentence-transformers model with torch: on a GPU when there is one, else on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from services.embed.backends import pipeline
from services.embed.backends.memory import memory_errors_told
from services.embed.backends.padding import pad
from services.embed.backends.precision import canary_ids
from services.embed.backends.protocol import BackendInfo, LoadedModel
from services.embed.backends.torch_packed import PackedTorchBackend, packed_encoder, to_host
from services.embed.model import Precision
from services.embed.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from services.embed.model import TokenIds, Vectors

_CPU_TOKEN_BUDGET = 1024
_GPU_TOKEN_BUDGET = 16384
_DTYPES = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
}


def load_torch(
    folder: Path, *, precision: str, attention: str, token_budget: int, max_text_chars: int
) -> LoadedModel:
    """Returns a model, ready to run. Blocks for seconds.

    With an attention of `auto` it runs without padding where the model is of a known family.

    Raises:
        UnsupportedModelError: the model needs what this backend does not do.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = pipeline.load_model(folder, device=device)
    chosen = _precision(precision, device)
    identity = pipeline.identity_of(model, folder)
    encoder = ModelTokenizer(
        Tokenizer.from_str(pipeline.tokenizer_json(model)),
        max_tokens=identity.max_tokens,
        max_text_chars=max_text_chars,
    )
    default_budget = _GPU_TOKEN_BUDGET if device == "cuda" else _CPU_TOKEN_BUDGET
    info = BackendInfo(
        name="torch",
        precision=chosen,
        dimensions=pipeline.dimensions_of(model),
        concurrency=1,
        token_budget=token_budget or default_budget,
        identity=identity,
        device=device,
    )
    module = pipeline.Pipeline(model).to(_DTYPES[chosen]).eval()
    token_types = pipeline.uses_token_types(model)
    packed = None
    if attention != "padded":
        packed = packed_encoder(module, canary_ids(encoder), token_types=token_types)
    if packed is not None:
        packed_info = replace(info, padded=False)
        return LoadedModel(PackedTorchBackend(packed, packed_info, device=device), encoder)
    return LoadedModel(TorchBackend(module, info, device=device, token_types=token_types), encoder)


def _precision(wanted: str, device: str) -> Precision:
    if wanted != "auto":
        return Precision(wanted)
    return Precision.FLOAT16 if device == "cuda" else Precision.FLOAT32


class TorchBackend:
    """A torch module on rectangles of texts, which one thread feeds; torch uses all cores."""

    def __init__(
        self, module: pipeline.Pipeline, info: BackendInfo, *, device: str, token_types: bool
    ) -> None:
        self._module: pipeline.Pipeline | None = module
        self._info = info
        self._device = device
        self._token_types = token_types

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
            return to_host(self._module(*tensors))

    def close(self) -> None:
        """Releases the model's memory."""
        self._module = None
        if self._device == "cuda":
            torch.cuda.empty_cache()
