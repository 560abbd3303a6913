"""The protocol of all backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import (
        EncodedText,
        ModelIdentity,
        Precision,
        TokenIds,
        Truncation,
        Vectors,
    )
    from services.runtime.errors import LodestoneError

MOST_TEXTS: Final = 4096
"""Texts of a batch where a backend has no limit of its own."""


class OutOfMemoryError(Exception):
    """The engine had no memory for this batch; a smaller one may fit."""


class EngineError(Exception):
    """The engine raised in its own process; the message is the error's class, never its text."""


class EngineLostError(Exception):
    """The process that runs the model died or hung with this batch in it, or beside it."""

    def __init__(self, *, hung: bool) -> None:
        super().__init__("the engine hung" if hung else "the engine died")
        self.hung = hung


class EngineDownError(Exception):
    """The engine is being rebuilt, and was not back in time; nothing was run."""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a loaded backend is, and how it wants its batches.

    `concurrency` is the number of threads that may call `infer` at once; `token_budget` the tokens
    of a batch that measured best. `padded` says how those count: each text as long as the longest
    of its batch, or each by its own length. `max_texts` is the most texts of a batch.
    """

    name: str
    precision: Precision
    dimensions: int
    concurrency: int
    token_budget: int
    identity: ModelIdentity
    device: str = "cpu"
    """What its forwards occupy, e.g. `cpu` or `cuda`; empty when that is not on this machine."""
    padded: bool = True
    max_texts: int = MOST_TEXTS


class Backend(Protocol):
    """Turns token ids into vectors. Loaded when it exists; used by threads, never by the loop."""

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        ...

    def infer(self, batch: Sequence[TokenIds]) -> Vectors:
        """Returns one vector per text, in order: shape (texts, dimensions), L2-normalised.

        Blocks. A vector does not depend on the other texts of the batch beyond rounding. Raises
        OutOfMemoryError when a smaller batch may fit, a LodestoneError when that is how every text
        of the batch ends, and else whatever the engine raises: the caller then finds the text that
        is at fault.
        """
        ...

    def close(self) -> None:
        """Releases the model; no `infer` runs any more."""
        ...


class TextEncoder(Protocol):
    """Turns texts into token ids. Used by several threads at once."""

    @property
    def max_tokens(self) -> int:
        """Most tokens that the model reads of one text, special tokens included."""
        ...

    def encode(
        self, texts: Sequence[str], truncation: Truncation
    ) -> list[EncodedText | LodestoneError]:
        """Returns one outcome per text, in order; one bad text does not fail the others."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A backend and the encoder that belongs to it."""

    backend: Backend
    encoder: TextEncoder
