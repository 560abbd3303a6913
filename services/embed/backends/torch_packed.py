"""Runs an encoder without padding, where a trial shows that it gives the same vectors."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from services.embed.backends.memory import memory_errors_told
from services.embed.backends.padding import pad
from services.embed.backends.protocol import AlwaysUp
from services.embed.backends.torch_attention import attention_for
from services.embed.backends.torch_varlen import PackedEncoder, why_not_packed
from services.embed.canary import LEAST_COSINE, least_cosine
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.backends.pipeline import Pipeline
    from services.embed.backends.protocol import BackendInfo
    from services.embed.backends.torch_graphs import GraphedEncoder
    from services.embed.model import TokenIds, Vectors


def packed_encoder(
    pipeline: Pipeline, canaries: Sequence[TokenIds], *, token_types: bool
) -> PackedEncoder | None:
    """Returns the model without padding; None, with a line in the log, where it is not to be had.

    The model must be on its device and in its precision already. The trial runs there: a kernel
    that this GPU lacks, or that answers otherwise than the library's, is found before it serves.
    """
    why = why_not_packed(pipeline.model)
    weight = next(pipeline.parameters())
    attention = attention_for(weight.device, weight.dtype)
    if not why and attention is None:
        why = "device"
    if why or attention is None:
        get_logger().info("packed_attention_not_used", why=why)
        return None
    packed = PackedEncoder(pipeline.model, attention).eval()
    try:
        cosine = _trial(pipeline, packed, canaries, token_types=token_types)
    except Exception as error:  # noqa: BLE001 - whatever it is, the library's way may do
        get_logger().warning("packed_attention_failed", error=type(error).__name__)
        return None
    if cosine < LEAST_COSINE:
        get_logger().warning("packed_attention_disagrees", cosine=round(cosine, 5))
        return None
    return packed


class PackedTorchBackend(AlwaysUp):
    """A torch module on rows of texts.

    On a GPU two threads feed it: one lays out a batch while the other waits for its rows, so that
    the GPU finds the next one when it ends. All goes to one stream, which does in order what it is
    given: what is laid out next overwrites nothing before it was read.
    """

    def __init__(
        self,
        encoder: PackedEncoder,
        info: BackendInfo,
        *,
        device: str,
        graphs: GraphedEncoder | None = None,
    ) -> None:
        self._encoder: PackedEncoder | None = encoder
        self._info = info if graphs is None else replace(info, graphs=graphs.graphs)
        self._device = device
        self._graphs = graphs
        self._laying_out = threading.Lock()

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        return self._info

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        """Returns one row per text, normalised in float32; copies them from the GPU once.

        Where `graphs` has a recorded forward for a batch, that is replayed.
        """
        assert self._encoder is not None
        with memory_errors_told(), torch.inference_mode():
            with self._laying_out:
                rows = self._replayed(batch) or HostRows(self._encoder(batch))
            return rows.wait()

    def _replayed(self, batch: Sequence[TokenIds]) -> HostRows | None:
        """Returns rows by a replay, where there is one; the first that fails is the last."""
        if self._graphs is None:
            return None
        try:
            return self._graphs.start(batch)
        except RuntimeError as error:
            get_logger().warning("cuda_graphs_failed", error=type(error).__name__, serving=True)
            self._release_graphs()
            return None

    def _release_graphs(self) -> None:
        graphs, self._graphs = self._graphs, None
        if graphs is not None:
            graphs.close()
            self._info = replace(self._info, graphs=0)

    def close(self) -> None:
        """Releases the model's memory."""
        self._release_graphs()
        self._encoder = None
        if self._device == "cuda":
            torch.cuda.empty_cache()


class HostRows:
    """Rows on their way to memory of the caller's own, in float32, and of length one if wanted.

    What they are made of may be overwritten by what the device is given next.
    """

    def __init__(self, rows: torch.Tensor, *, normalised: bool = True) -> None:
        values = rows.float()
        if normalised:
            values = torch.nn.functional.normalize(values, dim=-1)
        self._there: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            target = torch.empty(values.shape, dtype=torch.float32, pin_memory=True)
            target.copy_(values, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()
            values = target
        elif values is rows:
            values = rows.clone()
        self._values = values

    def wait(self) -> Vectors:
        """Returns the rows when they are there; other threads go on meanwhile."""
        if self._there is not None:
            self._there.synchronize()
        vectors: Vectors = self._values.numpy()
        return vectors


def to_host(rows: torch.Tensor, *, normalised: bool = True) -> Vectors:
    """Returns rows in memory of the caller's own, in float32, and of length one if wanted."""
    return HostRows(rows, normalised=normalised).wait()


def _trial(
    pipeline: Pipeline, packed: PackedEncoder, texts: Sequence[TokenIds], *, token_types: bool
) -> float:
    """Returns the least cosine between the two ways to run the model."""
    device = next(pipeline.parameters()).device
    with torch.inference_mode():
        padded = [
            torch.from_numpy(array).to(device) for array in pad(texts, token_types=token_types)
        ]
        return least_cosine(to_host(packed(texts)), to_host(pipeline(*padded)))
