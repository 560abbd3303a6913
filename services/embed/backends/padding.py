"""Puts texts of several lengths into one rectangle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from services.embed.model import TYPE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import TokenIds

_ID_MASK = (1 << TYPE_SHIFT) - 1


def pad(
    batch: Sequence[TokenIds], *, token_types: bool
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Returns ids and mask, and types if wanted, each of shape (texts, longest).

    The upper half of what is given is the type.
    """
    longest = max(map(len, batch))
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    types = ids >> TYPE_SHIFT
    ids &= _ID_MASK
    return [ids, mask, types] if token_types else [ids, mask]
