"""The protocol of all backends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import (
        EncodedText,
        ModelIdentity,
        Precision,
        Purpose,
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
    """The engine is away, being rebuilt or stopped; nothing was run."""


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
    scores: bool = False
    """Whether a row is the one score of a pair of texts, and no vector."""
    routes: tuple[str, ...] = ()
    """Purposes that have a network of their own; empty when one network serves them all."""
    graphs: int = field(default=0, compare=False)
    """Forwards that are replayed from a CUDA graph; measured anew each time a model is loaded."""

    @property
    def all_routes(self) -> tuple[str, ...]:
        """Every route that a batch may take."""
        return self.routes or ("",)

    def route_of(self, purpose: Purpose) -> str:
        """Returns the route of texts for a purpose; empty when the model has no routes."""
        return str(purpose) if self.routes else ""


class Backend(Protocol):
    """Turns token ids into vectors or scores. Loaded when it exists; used by threads alone."""

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        ...

    def wait_until_up(self) -> None:
        """Blocks until a forward can begin, and holds no part of the machine meanwhile.

        Raises EngineDownError when an engine that was lost is not back in time, or after `stop`.
        """
        ...

    def infer(self, batch: Sequence[TokenIds], route: str = "", /) -> Vectors:
        """Returns one vector per text, in order: shape (texts, dimensions), L2-normalised.

        Where `info.scores`, a row is one score of any size. All texts take one `route`, one of
        `info.all_routes`, and were encoded for it. Blocks. A row does not depend on the other texts
        of the batch beyond rounding. Raises OutOfMemoryError when a smaller batch may fit,
        EngineDownError when the engine went away before it had the batch, a LodestoneError when
        that is how every text of the batch ends, and else whatever the engine raises: the caller
        then finds the text that is at fault.
        """
        ...

    def stop(self) -> None:
        """Ends all waiting for good: whoever waits for a turn, an engine or an answer is let go.

        For any thread, before `close`. Their calls raise EngineDownError or EngineLostError; a
        forward in this very process is short, and ends by itself.
        """
        ...

    def close(self) -> None:
        """Releases the model; no `infer` runs any more."""
        ...


class AlwaysUp:
    """The part of `Backend` for models in this process, which wait for nothing."""

    def wait_until_up(self) -> None:
        """Returns at once."""

    def stop(self) -> None:
        """Does nothing: there is no waiting to end."""


class TextEncoder(Protocol):
    """Turns texts into token ids. Used by several threads at once."""

    @property
    def max_tokens(self) -> int:
        """Most tokens that the model reads of one text, special tokens included."""
        ...

    def encode(
        self, texts: Sequence[str], truncation: Truncation, route: str = "", prompt: str = "", /
    ) -> list[EncodedText | LodestoneError]:
        """Returns one outcome per text, each behind the prompt, in order, in the tokens of a route.

        One bad text does not fail the others. Where the start of a text is cut off, the prompt is
        kept.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A backend and the encoder that belongs to it."""

    backend: Backend
    encoder: TextEncoder
