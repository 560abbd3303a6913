"""Checks rows that a model returned, cuts them, and lays them out as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import numpy as np

from services.embed.model import VectorType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import VectorLayout, Vectors

_LEAST_NORM = 0.5
_MOST_NORM = 2.0
"""Rows come L2-normalised; 16-bit arithmetic moves a norm by thousandths. Anything beyond these
bounds is a bug or an overflow, and a vector of norm zero has no direction."""
_LEAST_CUT_NORM = 1e-4
"""What is left of a row of length one after it was cut. Below this it is rounding, not meaning."""
_INT8_SCALE = 127.0


def good_rows(vectors: Vectors, *, dimensions: int, scores: bool = False) -> Sequence[bool]:
    """Tells for each row whether it may leave the service; none may when their size is wrong.

    Rows are vectors of length one, or with `scores` any finite numbers.
    """
    if vectors.shape[1:] != (dimensions,):
        return [False] * len(vectors)
    if scores:
        return [bool(finite) for finite in np.isfinite(vectors[:, 0])]
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    # A NaN or an infinity makes the norm one, and comparisons with NaN are false.
    good: list[bool] = ((norms >= _LEAST_NORM) & (norms <= _MOST_NORM)).tolist()
    return good


def to_bytes(vectors: Vectors, layout: VectorLayout) -> list[bytes]:
    """Returns each row in its layout, little-endian; empty where cutting left no direction."""
    if not layout.dimensions:
        return _packed(vectors, layout.vector_type)
    cut = vectors[:, : layout.dimensions]
    norms = np.linalg.norm(cut, axis=1)
    kept = norms >= _LEAST_CUT_NORM
    # A part of a vector of length one is shorter than one: without this, inner products of cut
    # vectors would rank by how much of each vector the cut left, not by direction.
    packed = iter(_packed(cut[kept] / norms[kept, None], layout.vector_type))
    return [next(packed) if keep else b"" for keep in kept]


def _packed(vectors: Vectors, vector_type: VectorType) -> list[bytes]:
    match vector_type:
        case VectorType.FLOAT32:
            packed = vectors.astype("<f4", copy=False)
        case VectorType.FLOAT16:
            packed = vectors.astype("<f2")
        case VectorType.INT8:
            scaled = np.rint(np.clip(vectors, -1.0, 1.0) * _INT8_SCALE)
            return _rows(scaled.astype(np.int8).tobytes(), len(vectors))
        case VectorType.BINARY:
            return _rows(np.packbits(vectors > 0, axis=1, bitorder="big").tobytes(), len(vectors))
        case _:
            assert_never(vector_type)
    return _rows(packed.tobytes(), len(vectors))


def _rows(data: bytes, count: int) -> list[bytes]:
    width = len(data) // count if count else 0
    return [data[at : at + width] for at in range(0, len(data), width)] if width else []
