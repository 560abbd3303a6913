"""Texts whose float32 vectors a model must agree with before it serves."""

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

LEAST_COSINE: Final = 0.999


def least_cosine(vectors: Vectors, expected: Vectors) -> float:
    """Returns the smallest cosine between rows; -1 when shapes differ or a number is not finite."""
    if vectors.shape != expected.shape or not np.isfinite(vectors).all():
        return -1.0
    products = np.einsum("ij,ij->i", vectors, expected, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    if not norms.all():
        return -1.0
    return float((products / norms).min())
