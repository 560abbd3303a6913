"""Tells an engine that had no memory for a batch from one that failed on it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from services.embed.backends.protocol import OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIGNS: Final = (
    "bad_alloc",
    "allocate",
    "can't alloc",
    "alloc_failed",
    "out of memory",
    "not enough memory",
)
"""What engines that have no class for it say: C++'s own word, oneDNN's, two of OpenVINO, cuBLAS's,
torch's."""


@contextlib.contextmanager
def memory_errors_told() -> Iterator[None]:
    """Raises what the engine says about missing memory as OutOfMemoryError, all else as it is."""
    try:
        yield
    except MemoryError:
        raise OutOfMemoryError from None
    except RuntimeError as error:  # torch.cuda.OutOfMemoryError is one too
        if any(sign in str(error).lower() for sign in _SIGNS):
            raise OutOfMemoryError from None
        raise
