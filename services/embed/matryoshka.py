"""Which shorter lengths a model's vectors may be cut to."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_CONFIGS = ("config_sentence_transformers.json", "config.json")
_KEYS = ("matryoshka_dimensions", "matryoshka_dims")
"""Names under which published models and the servers of others keep the list."""
_MOST_SIZES = 64


def declared_sizes(folder: Path) -> list[int]:
    """Returns the lengths that a model's own configuration names; empty when it names none."""
    for name in _CONFIGS:
        with contextlib.suppress(OSError, ValueError):
            config = json.loads((folder / name).read_text())
            for key in _KEYS:
                sizes = config.get(key) if isinstance(config, dict) else None
                if isinstance(sizes, list) and sizes:
                    return [size for size in sizes if type(size) is int][:_MOST_SIZES]
    return []


def shorter_sizes(
    declared: Iterable[int], configured: Iterable[int], *, dimensions: int
) -> tuple[int, ...]:
    """Returns the lengths below the model's own that are allowed, the shortest first.

    What the model declares counts; what the settings say counts only where it declares nothing,
    because a vector of a model that was not trained for it loses its meaning when it is cut.
    """
    wanted = set(declared) or set(configured)
    return tuple(sorted(size for size in wanted if 0 < size < dimensions))
