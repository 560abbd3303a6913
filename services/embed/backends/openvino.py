"""Runs a converted model with OpenVINO: one stream a core, 16 bits where they are fast."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from services.embed.backends import cpu
from services.embed.backends.converted import (
    GRAPH,
    TOKENIZER,
    read_canary,
    read_facts,
)
from services.embed.backends.layout import Layout, choose_layout, usual_layout
from services.embed.backends.memory import memory_errors_told
from services.embed.backends.padding import pad
from services.embed.backends.precision import canary_ids, choose_precision
from services.embed.backends.protocol import AlwaysUp, BackendInfo, LoadedModel
from services.embed.model import Precision
from services.embed.pair_tokenizer import PairTokenizer
from services.embed.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from services.embed.backends.converted import ConvertedFacts
    from services.embed.backends.protocol import TextEncoder
    from services.embed.model import TokenIds, Vectors

_TOKEN_BUDGET = 1024
"""Padded tokens of a batch. Measured on two cores: 512 to 2048 are within 4% of each other."""
_CACHED_SHAPES = 32
"""Shapes of batches whose compiled kernels are kept. Measured: 256 cost 30 MB and win nothing."""
_CACHED_KERNELS = "64"
"""Kernels that oneDNN keeps besides. With its default of 1024 memory grows by 60 MB over 10,000
texts, and nothing is faster."""
_HINTS = {Precision.FLOAT32: "f32", Precision.BFLOAT16: "bf16", Precision.FLOAT16: "f16"}


def import_openvino() -> Any:
    """Returns the `openvino` module, imported without its telemetry and with small caches.

    OpenVINO imports `openvino_telemetry` when it is there, and sends events to a web analytics
    service unless a file in the home folder says no. A None in `sys.modules` makes the import
    fail, and OpenVINO then uses its own stub that does nothing.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _CACHED_KERNELS)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # noqa: PLC0415 - after the line above, and only where it runs

    return openvino


def load_openvino(
    folder: Path,
    *,
    precision: str,
    streams: int,
    threads: int,
    token_budget: int,
    max_text_chars: int,
) -> LoadedModel:
    """Returns a converted model, ready to run.

    Blocks for a fraction of a second; at the first start on a kind of machine for seconds, to
    measure precision and layout. Streams or threads other than 0 are taken as they are.

    Raises:
        StartError: the model disagrees with its canary vectors.
    """
    facts = read_facts(folder)
    encoder = encoder_of(folder, facts, max_text_chars=max_text_chars)
    core = import_openvino().Core()
    cores = cpu.available_cores()
    layout = usual_layout(cores)
    if streams or threads:
        layout = Layout(streams or layout.streams, threads or max(layout.threads, streams))

    def compile_as(layout: Layout, wanted: Precision) -> OpenVinoBackend:
        return OpenVinoBackend(
            core, folder, facts, precision=wanted, layout=layout,
            token_budget=token_budget or _TOKEN_BUDGET,
        )  # fmt: skip

    backend = choose_precision(
        lambda wanted: compile_as(layout, wanted),
        encoder,
        canary=read_canary(folder),
        wanted=precision,
        folder=folder,
    )
    if not streams and not threads:
        backend = _in_best_layout(backend, layout, compile_as, encoder, folder)
    return LoadedModel(backend, encoder)


def encoder_of(folder: Path, facts: ConvertedFacts, *, max_text_chars: int) -> TextEncoder:
    """Returns the encoder of a converted model: of texts, or of pairs."""
    kind = PairTokenizer if facts.scores else ModelTokenizer
    return kind(
        Tokenizer.from_file(str(folder / TOKENIZER)),
        max_tokens=facts.identity.max_tokens,
        max_text_chars=max_text_chars,
    )


def _in_best_layout(
    backend: OpenVinoBackend,
    usual: Layout,
    compile_as: Callable[[Layout, Precision], OpenVinoBackend],
    encoder: TextEncoder,
    folder: Path,
) -> OpenVinoBackend:
    """Returns the backend, or in its place one in a layout that measured better."""
    precision = backend.info.precision
    chosen = choose_layout(
        lambda layout: compile_as(layout, precision),
        usual=usual,
        precision=precision,
        some_ids=canary_ids(encoder)[-1],
        folder=folder,
    )
    if chosen == usual:
        return backend
    backend.close()
    return compile_as(chosen, precision)


class OpenVinoBackend(AlwaysUp):
    """A compiled model with one infer request a stream."""

    def __init__(
        self,
        core: Any,
        folder: Path,
        facts: ConvertedFacts,
        *,
        precision: Precision,
        layout: Layout,
        token_budget: int,
    ) -> None:
        self._info = BackendInfo(
            name="openvino",
            precision=precision,
            dimensions=facts.dimensions,
            concurrency=layout.streams,
            token_budget=token_budget,
            identity=facts.identity,
            scores=facts.scores,
        )
        self._token_types = facts.token_types
        self._core = core
        self._graph = folder / GRAPH
        self._options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": str(layout.streams),
            "INFERENCE_NUM_THREADS": str(layout.threads),
            # Other processes share the cores: a pinned stream would wait for its core while
            # another one idles.
            "ENABLE_CPU_PINNING": "NO",
            "CPU_RUNTIME_CACHE_CAPACITY": str(_CACHED_SHAPES),
        }
        self._lock = threading.Lock()
        self._local = threading.local()
        self._compiled = self._compile()

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        return self._info

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        """Returns one row per text; each thread has a request of its own."""
        with memory_errors_told():
            compiled, request = self._request()
            try:
                request.infer(pad(batch, token_types=self._token_types), share_inputs=True)
            except Exception:
                self._discard(compiled)
                raise
            # The request's memory is written again by its next batch.
            vectors: Vectors = np.array(request.get_output_tensor(0).data, dtype=np.float32)
        return vectors

    def close(self) -> None:
        """Releases the model's memory."""
        self._local = threading.local()
        self._compiled = None

    def _compile(self) -> Any:
        return self._core.compile_model(str(self._graph), "CPU", self._options)

    def _request(self) -> tuple[Any, Any]:
        """Returns the compiled model and this thread's request, which belongs to it."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
            compiled = self._compiled
        if getattr(self._local, "compiled", None) is not compiled:
            self._local.request = compiled.create_infer_request()
            self._local.compiled = compiled
        return compiled, self._local.request

    def _discard(self, compiled: Any) -> None:
        """Has the model compiled anew before the next forward.

        A forward that ends half-way, for want of memory say, leaves the graph of its stream with
        the shapes of two batches, and every later forward on that stream fails.
        """
        self._local.request = self._local.compiled = None
        with self._lock:
            if self._compiled is compiled:
                self._compiled = None
