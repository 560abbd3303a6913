"""Decides at start which numbers a model computes with, by trying."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from services.embed.backends import cpu
from services.embed.backends.measured import keep_measured
from services.embed.canary import CANARY_TEXTS, agreement, least_agreement
from services.embed.fingerprint import digest_of_bytes
from services.embed.model import EncodedText, Precision, Truncation
from services.runtime.exits import ExitCode, StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from services.embed.backends.protocol import Backend, LoadedModel, TextEncoder
    from services.embed.model import TokenIds, Vectors

_TRIALS = 3
BackendT = TypeVar("BackendT", bound="Backend")


def choose_precision(
    compile_in: Callable[[Precision], BackendT],
    encoder: TextEncoder,
    *,
    canary: Vectors,
    wanted: str,
    folder: Path,
) -> BackendT:
    """Returns a backend in the wanted precision; `auto` takes the fastest that is right.

    bfloat16 is tried where the CPU multiplies it. It serves when its vectors agree with float32
    and it is not slower; the measurement is kept beside the model, per kind of CPU.

    Raises:
        StartError: the model disagrees with its canary vectors even so.
    """
    texts = canary_ids(encoder)
    if wanted == "auto":
        wanted = _decide(compile_in, texts, canary, folder)
    backend = compile_in(Precision(wanted))
    scores = backend.info.scores
    agreed = agreement(_one_by_one(backend, texts), canary, scores=scores)
    if agreed < least_agreement(scores=scores):
        what = "scores" if scores else "vectors"
        raise StartError(
            ExitCode.MODEL,
            f"The model disagrees with its own {what} in {wanted} "
            f"({'agreement' if scores else 'cosine'} {agreed:.4f}). "
            f"Set LODESTONE_EMBED_PRECISION=float32, or remove the folder {folder}.",
        )
    return backend


def load_where_it_agrees(
    load_in: Callable[[Precision], tuple[LoadedModel, Mapping[str, Vectors]]],
    precisions: Sequence[Precision],
) -> LoadedModel:
    """Returns a model in the first precision in which it gives the rows of float32.

    `load_in` returns a model, and its float32 rows of the canary texts by route; none of a model
    that computes in float32.

    Raises:
        StartError: it disagrees with itself in each of them.
    """
    told = ""
    for precision in precisions:
        loaded, exact = load_in(precision)
        scores = loaded.backend.info.scores
        agreed = min(
            (
                agreement(rows_alone(loaded, route), rows, scores=scores)
                for route, rows in exact.items()
            ),
            default=1.0,
        )
        if agreed >= least_agreement(scores=scores):
            return loaded
        loaded.backend.close()
        told = f"{precision} ({'agreement' if scores else 'cosine'} {agreed:.4f})"
        get_logger().warning(
            "precision_disagrees", precision=str(precision), cosine=round(agreed, 4)
        )
    raise StartError(
        ExitCode.MODEL,
        f"The model disagrees with itself in float32 when it computes in {told}. "
        "Set LODESTONE_EMBED_PRECISION=float32.",
    )


def rows_alone(loaded: LoadedModel, route: str = "") -> Vectors:
    """Returns a model's rows of the canary texts, each of which runs alone."""
    return _one_by_one(loaded.backend, canary_ids(loaded.encoder, route), route)


def _decide(
    compile_in: Callable[[Precision], Backend],
    texts: Sequence[TokenIds],
    canary: Vectors,
    folder: Path,
) -> Precision:
    if not cpu.has_fast_bfloat16():
        return Precision.FLOAT32
    memory = folder / f"precision-{digest_of_bytes(cpu.model_name().encode())[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        return Precision(json.loads(memory.read_text())["precision"])
    fast, exact = compile_in(Precision.BFLOAT16), compile_in(Precision.FLOAT32)
    scores = fast.info.scores
    agreed = agreement(_one_by_one(fast, texts), canary, scores=scores)
    seconds, exact_seconds = _seconds(fast, texts), _seconds(exact, texts)
    fast.close()
    exact.close()
    good = agreed >= least_agreement(scores=scores) and seconds <= exact_seconds
    chosen = Precision.BFLOAT16 if good else Precision.FLOAT32
    facts = {
        "precision": str(chosen),
        "bfloat16_cosine": round(agreed, 6),
        "bfloat16_seconds": round(seconds, 4),
        "float32_seconds": round(exact_seconds, 4),
    }
    get_logger().info(
        "precision_measured",
        precision=facts["precision"],
        bfloat16_cosine=facts["bfloat16_cosine"],
        bfloat16_seconds=facts["bfloat16_seconds"],
        float32_seconds=facts["float32_seconds"],
    )
    keep_measured(memory, facts)
    return chosen


def _one_by_one(backend: Backend, texts: Sequence[TokenIds], route: str = "") -> Vectors:
    """Returns the rows of texts that share no batch: no padding, a third of the work."""
    rows: Vectors = np.concatenate([backend.infer([ids], route) for ids in texts])
    return rows


def _seconds(backend: Backend, texts: Sequence[TokenIds]) -> float:
    """Returns the best time of a few forwards, the first of which only warms up."""
    backend.infer(texts)
    best = float("inf")
    for _ in range(_TRIALS):
        started = time.perf_counter()
        backend.infer(texts)
        best = min(best, time.perf_counter() - started)
    return best


def canary_ids(encoder: TextEncoder, route: str = "") -> list[TokenIds]:
    """Returns the token ids of the canary texts on a route."""
    encoded = encoder.encode(CANARY_TEXTS, Truncation.END, route)
    texts = [item.ids for item in encoded if isinstance(item, EncodedText)]
    assert len(texts) == len(CANARY_TEXTS)
    return texts
