"""Texts whose float32 vectors, or scores, a model must agree with before it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from services.embed.model import Vectors

CANARY_VERSION: Final = 1
"""Counts changes of the texts: vectors of other texts are no use."""

CANARY_TEXTS: Final = (
    "",
    "return None",
    "def add(self, left: int, right: int) -> int:\n    return left + right",
    "SELECT id, name FROM users WHERE created_at > now() - interval '1 day' ORDER BY id",
    "for (let i = 0; i < items.length; i++) { total += items[i].price * items[i].count; }",
    "Löscht alte Dateien. Удаляет старые файлы. 古いファイルを削除する。",
    "class Cache:\n"
    + "\n".join(
        f"    def get_{name}(self, key):\n"
        f'        """Returns the {name} for a key, or None when there is none."""\n'
        f"        return self._{name}s.get(key, self._default_{name})\n"
        for name in ("value", "owner", "timestamp", "priority", "checksum", "parent", "listener")
    ),
)

CANARY_QUERY: Final = "how are two numbers added"
"""What a model that scores pairs reads before each of the texts."""

LEAST_COSINE: Final = 0.999
LEAST_SCORE_AGREEMENT: Final = 0.99
"""16 bits move a score by hundredths where scores of a trained model are tens apart."""
_LEAST_SPREAD = 1e-3


def agreement(rows: Vectors, expected: Vectors, *, scores: bool) -> float:
    """Returns how well rows agree with those expected, at best 1: see `least_agreement`.

    Of vectors it is the least cosine; of scores 1 less the largest difference, as a share of how
    far apart the expected ones are. -1 when shapes differ or a number is not finite.
    """
    if not scores:
        return least_cosine(rows, expected)
    if rows.shape != expected.shape or not np.isfinite(rows).all():
        return -1.0
    spread = max(float(np.ptp(expected)), _LEAST_SPREAD)
    return 1.0 - float(np.abs(rows - expected).max()) / spread


def least_agreement(*, scores: bool) -> float:
    """Returns the agreement below which a model does not serve."""
    return LEAST_SCORE_AGREEMENT if scores else LEAST_COSINE


def least_cosine(vectors: Vectors, expected: Vectors) -> float:
    """Returns the smallest cosine between rows; -1 when shapes differ or a number is not finite."""
    if vectors.shape != expected.shape or not np.isfinite(vectors).all():
        return -1.0
    products = np.einsum("ij,ij->i", vectors, expected, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    if not norms.all():
        return -1.0
    return float((products / norms).min())
