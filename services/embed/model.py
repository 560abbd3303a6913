"""Values that pass between the parts of the embed service."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NewType, TypeAlias

import numpy as np
import numpy.typing as npt

from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ModelId = NewType("ModelId", str)
MODEL_ID: Final = re.compile(r"[a-z0-9._-]{1,63}")
TokenIds: TypeAlias = npt.NDArray[np.int64]
"""Token ids of one text or pair, special tokens included; shape (tokens,). The upper half of each
is its token type: 0 but for the second text of a pair."""
TYPE_SHIFT: Final = 32
"""Bits of a token's id below its type."""
Vectors: TypeAlias = npt.NDArray[np.float32]
"""Rows of L2-normalised float32; shape (texts, dimensions)."""


class Purpose(StrEnum):
    """What a text is for; selects the model's prompt."""

    DOCUMENT = "document"
    QUERY = "query"


class Lane(StrEnum):
    """Who waits for the answer."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class Truncation(StrEnum):
    """What happens to a text that is longer than the model reads."""

    ERROR = "error"
    END = "end"
    START = "start"


class VectorType(StrEnum):
    """How the numbers of a vector are laid out in bytes."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """How a vector leaves: its type and its length; a length of 0 is the model's own."""

    vector_type: VectorType = VectorType.FLOAT32
    dimensions: int = 0


class Precision(StrEnum):
    """Numbers that a forward computes with."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ModelState(StrEnum):
    """Whether a model serves."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How texts are to be embedded.

    `dimensions` of 0 is the model's own size; `expect_fingerprint` of "" expects nothing.
    """

    purpose: Purpose
    truncation: Truncation = Truncation.ERROR
    vector_type: VectorType = VectorType.FLOAT32
    dimensions: int = 0
    lane: Lane = Lane.BULK
    expect_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A vector in the layout that was asked for, and what the model read for it."""

    vector: bytes
    token_count: int
    truncated: bool


Outcome: TypeAlias = Embedding | LodestoneError
"""How one text ended."""


@dataclass(frozen=True, slots=True)
class Score:
    """How close a text is to a query, and what the model read for it."""

    value: float
    token_count: int
    truncated: bool


ScoreOutcome: TypeAlias = Score | LodestoneError
"""How one text ended that was to be scored."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text as the model reads it.

    `shortened` says that tokens were cut off, or that the text was too large to be looked at whole.
    """

    ids: TokenIds
    shortened: bool


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a model wants before each text, by purpose."""

    document: str = ""
    query: str = ""

    def of(self, purpose: Purpose) -> str:
        """Returns the prompt of a purpose, often empty."""
        return self.query if purpose is Purpose.QUERY else self.document


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What callers may know of a loaded model."""

    model_id: ModelId
    dimensions: int
    max_tokens: int
    max_batch_texts: int
    fingerprint: str
    backend: str
    precision: Precision
    matryoshka_dimensions: Sequence[int] = field(default=())
    reranks: bool = False
    """Whether it scores texts against a query and has no vectors; `dimensions` is 0 then."""

    @property
    def allowed_dimensions(self) -> list[int]:
        """Lengths that its vectors may have, the shortest first."""
        return sorted({*self.matryoshka_dimensions, self.dimensions})

    def layout_of(self, options: EmbedOptions) -> VectorLayout:
        """Returns the layout that options ask for; the model's own length has one name, 0."""
        cut = options.dimensions if options.dimensions != self.dimensions else 0
        return VectorLayout(options.vector_type, cut)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is to be loaded under which name; two that are equal are one model.

    `source`, `backend` and `precision` are written as in the settings. `share` is the weight of
    its turns on the machine, `matryoshka_dimensions` what counts where the model says nothing.
    `reranks` says that it is a cross-encoder.
    """

    model_id: ModelId
    source: str
    backend: str
    precision: str
    share: int = 1
    matryoshka_dimensions: tuple[int, ...] = ()
    reranks: bool = False


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How far a model is; `info` tells what it is once it serves, `error` why it does not."""

    model_id: ModelId
    state: ModelState
    share: int
    is_default: bool
    info: ModelInfo | None = None
    error: LodestoneError | None = None
    queued_tokens: int = 0
    reranks: bool = False


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """All that decides which vector a text gets, before precision and backend are known."""

    weights: str
    """Digest of the files that hold the weights."""
    tokenizer: str
    """Digest of the tokenizer."""
    pipeline: Mapping[str, object]
    """Configuration of the modules after the tokenizer: architecture, pooling, normalising."""
    prompts: Prompts
    max_tokens: int
