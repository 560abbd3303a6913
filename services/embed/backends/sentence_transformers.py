"""Runs any sentence-transformers model with torch: on a GPU when there is one, else on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from services.embed.backends import pipeline
from services.embed.backends.memory import memory_errors_told
from services.embed.backends.padding import pad
from services.embed.backends.precision import canary_ids, load_where_it_agrees, rows_alone
from services.embed.backends.protocol import AlwaysUp, BackendInfo, LoadedModel
from services.embed.backends.routed import routed
from services.embed.backends.torch_device import device_of_choice
from services.embed.backends.torch_graphs import graphed_encoder
from services.embed.backends.torch_packed import PackedTorchBackend, packed_encoder, to_host
from services.embed.backends.torch_recorder import recorders_for
from services.embed.model import Precision
from services.embed.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from services.embed.model import ModelIdentity, TokenIds, Vectors

_CPU_TOKEN_BUDGET = 1024
_GPU_TOKEN_BUDGET = 16384
_GPU_BATCHES = 2
"""Batches of a GPU at once: one runs, one is laid out behind it."""
DTYPES = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
}


def load_torch(
    folder: Path,
    *,
    precision: str,
    attention: str,
    token_budget: int,
    max_text_chars: int,
    graphs: str = "auto",
) -> LoadedModel:
    """Returns a model, ready to run. Blocks for seconds.

    With an attention of `auto` it runs without padding where the model is of a known family; with
    graphs of `auto` it then replays CUDA graphs where they are faster.

    Raises:
        UnsupportedModelError: the model needs what this backend does not do.
        StartError: in 16 bits, as was asked for, it gives other vectors.
    """
    device = device_of_choice()

    def load_in(precision: Precision) -> tuple[LoadedModel, dict[str, Vectors]]:
        models = pipeline.load_routes(folder, device=device)
        identities = {route: pipeline.identity_of(model, folder) for route, model in models.items()}

        def load_all(precision: Precision, attention: str) -> dict[str, LoadedModel]:
            return {
                route: _loaded(
                    model,
                    identities[route],
                    precision=precision,
                    attention=attention,
                    graphs=graphs,
                    token_budget=token_budget,
                    max_text_chars=max_text_chars,
                    device=device,
                )
                for route, model in models.items()
            }

        exact = {}
        if precision is not Precision.FLOAT32:  # of all routes before any: they may share modules
            for route, one in load_all(Precision.FLOAT32, "padded").items():
                exact[route] = rows_alone(one)
        loaded = load_all(precision, attention)
        if len({one.backend.info.padded for one in loaded.values()}) > 1:
            for one in loaded.values():
                one.backend.close()
            loaded = load_all(precision, "padded")  # one queue packs for all routes
        return (loaded[""] if "" in loaded else routed(loaded)), exact

    return load_where_it_agrees(load_in, precisions_on(precision, device))


def _loaded(
    model: SentenceTransformer,
    identity: ModelIdentity,
    *,
    precision: Precision,
    attention: str,
    graphs: str,
    token_budget: int,
    max_text_chars: int,
    device: str,
) -> LoadedModel:
    encoder = ModelTokenizer(
        Tokenizer.from_str(pipeline.tokenizer_json(model)),
        max_tokens=identity.max_tokens,
        max_text_chars=max_text_chars,
    )
    info = BackendInfo(
        name="torch",
        precision=precision,
        dimensions=pipeline.dimensions_of(model),
        concurrency=1,
        token_budget=token_budget or usual_budget(device),
        identity=identity,
        device=device,
    )
    module = pipeline.Pipeline(model).to(DTYPES[precision]).eval()
    token_types = pipeline.uses_token_types(model)
    packed, canaries = None, canary_ids(encoder)
    if attention != "padded":
        packed = packed_encoder(module, canaries, token_types=token_types)
    if packed is not None:
        graphed = None
        recorders = recorders_for(device) if graphs == "auto" else None
        if recorders is not None:
            graphed = graphed_encoder(
                packed,
                canaries,
                token_budget=info.token_budget,
                longest=identity.max_tokens,
                recorders=recorders,
            )
        packed_info = replace(
            info, padded=False, concurrency=_GPU_BATCHES if device == "cuda" else 1
        )
        backend = PackedTorchBackend(packed, packed_info, device=device, graphs=graphed)
        return LoadedModel(backend, encoder)
    return LoadedModel(TorchBackend(module, info, device=device, token_types=token_types), encoder)


def usual_budget(device: str) -> int:
    """Returns the tokens of a batch that measured best on a kind of device."""
    return _GPU_TOKEN_BUDGET if device == "cuda" else _CPU_TOKEN_BUDGET


def precisions_on(wanted: str, device: str) -> Sequence[Precision]:
    """Returns what to compute with, the first that serves: as set, or as the device is best at."""
    if wanted != "auto":
        return (Precision(wanted),)
    if device != "cuda":
        return (Precision.FLOAT32,)
    # bfloat16 holds any number that float32 does; GPUs before Ampere only imitate it.
    wide = (Precision.BFLOAT16,) if torch.cuda.is_bf16_supported(including_emulation=False) else ()
    return (Precision.FLOAT16, *wide, Precision.FLOAT32)


class TorchBackend(AlwaysUp):
    """A torch module on rectangles of texts, which one thread feeds; torch uses all cores."""

    def __init__(
        self, module: torch.nn.Module, info: BackendInfo, *, device: str, token_types: bool
    ) -> None:
        self._module: torch.nn.Module | None = module
        self._info = info
        self._device = device
        self._token_types = token_types

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        return self._info

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        """Returns one row per text in float32; a vector is normalised again."""
        assert self._module is not None
        with memory_errors_told(), torch.inference_mode():
            arrays = pad(batch, token_types=self._token_types)
            tensors = [torch.from_numpy(array).to(self._device) for array in arrays]
            return to_host(self._module(*tensors), normalised=not self._info.scores)

    def close(self) -> None:
        """Releases the model's memory."""
        self._module = None
        if self._device == "cuda":
            torch.cuda.empty_cache()
