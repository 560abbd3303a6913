"""The service's own path and its gRPC against sentence-transformers and ONNX Runtime, in turn.

Blocks of texts go through the library, through the same weights on ONNX Runtime, through a served
model without gRPC, and through a service over its socket, one after the other: on a shared machine
only ratios within a block mean something. Each has a process of its own and is warm.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.bench.corpus import cached_texts
from tests.bench.embed_children import CALLS, MODELS, TEXTS_PER_CALL, Spent, child
from tests.bench.embed_texts import least_cosine, measure_service, running_service
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from services.embed.model import Vectors

_BLOCKS = 7
_BLOCK_TEXTS = 256
_LIBRARY_GOAL = 3.0
_GRPC_GOAL = 0.95
_COSINE_GOAL = 0.999


@dataclass(frozen=True, slots=True)
class Block:
    """What the same texts took in four ways."""

    library: Spent
    onnx: Spent
    served: Spent
    grpc: Spent


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns rates and ratios as medians over the blocks, and how close the vectors are."""
    texts = cached_texts(scratch, _BLOCKS * _BLOCK_TEXTS)
    blocks, cosine = asyncio.run(_run(texts, scratch))
    to_library = [block.library.seconds / block.served.seconds for block in blocks]
    to_onnx = [block.onnx.seconds / block.served.seconds for block in blocks]
    by_cpu_time = [block.library.cpu_seconds / block.served.cpu_seconds for block in blocks]
    grpc_to_library = [block.library.seconds / block.grpc.seconds for block in blocks]
    grpc_to_served = [block.served.seconds / block.grpc.seconds for block in blocks]
    ratio, grpc_ratio = statistics.median(to_library), statistics.median(grpc_to_served)
    return {
        "embed_served_to_library": figure(ratio, _LIBRARY_GOAL, met=ratio >= _LIBRARY_GOAL),
        "embed_served_to_library_least": figure(min(to_library)),
        "embed_served_to_library_most": figure(max(to_library)),
        "embed_served_to_library_by_cpu_time": figure(statistics.median(by_cpu_time)),
        "embed_served_to_onnx": figure(statistics.median(to_onnx)),
        "embed_served_to_onnx_least": figure(min(to_onnx)),
        "embed_served_to_onnx_most": figure(max(to_onnx)),
        "embed_grpc_to_library": figure(statistics.median(grpc_to_library)),
        "embed_grpc_to_library_least": figure(min(grpc_to_library)),
        "embed_grpc_to_served": figure(grpc_ratio, _GRPC_GOAL, met=grpc_ratio >= _GRPC_GOAL),
        "embed_least_cosine": figure(cosine, _COSINE_GOAL, met=cosine >= _COSINE_GOAL, digits=7),
        "embed_library_texts_per_second": _rate([block.library for block in blocks]),
        "embed_onnx_texts_per_second": _rate([block.onnx for block in blocks]),
        "embed_served_texts_per_second": _rate([block.served for block in blocks]),
        "embed_grpc_texts_per_second": _rate([block.grpc for block in blocks]),
    }


def _rate(spent: list[Spent]) -> dict[str, Any]:
    return figure(_BLOCK_TEXTS / statistics.median(each.seconds for each in spent))


async def _run(texts: list[str], scratch: Path) -> tuple[list[Block], float]:
    source = scratch / "texts.json"
    source.write_text(json.dumps(texts))
    blocks: list[Block] = []
    over_grpc: list[Vectors] = []
    with ExitStack() as children:
        library, onnx, served = (
            children.enter_context(child(kind, source, scratch / f"{kind}.npy"))
            for kind in ("library", "onnx", "served")
        )
        async with running_service({"CACHE_DIR": str(MODELS.resolve())}) as service:
            await measure_service(service, texts[:TEXTS_PER_CALL])
            for start in range(0, len(texts), _BLOCK_TEXTS):
                end = start + _BLOCK_TEXTS
                by_library = await asyncio.to_thread(library.embed, start, end)
                by_onnx = await asyncio.to_thread(onnx.embed, start, end)
                by_served = await asyncio.to_thread(served.embed, start, end)
                answer = await measure_service(
                    service,
                    texts[start:end],
                    texts_per_request=TEXTS_PER_CALL,
                    requests_at_once=CALLS,
                )
                over_grpc.append(answer.vectors)
                by_grpc = Spent(answer.seconds, answer.cpu_seconds)
                blocks.append(Block(by_library, by_onnx, by_served, by_grpc))
                say(f"library, ONNX Runtime, served, gRPC: {blocks[-1]}")
        exact = library.vectors()
        assert least_cosine(onnx.vectors(), exact) > _COSINE_GOAL  # else it runs another model
        cosines = [least_cosine(served.vectors(), exact)]
        cosines.append(least_cosine(np.concatenate(over_grpc), exact))
    return blocks, min(cosines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(measure(Path(folder))) + "\n")
