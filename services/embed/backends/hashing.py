"""Vectors from hashes of words: no model, deterministic, and lexically similar texts are near."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Final

import numpy as np

from services.embed.backends.protocol import AlwaysUp, BackendInfo, LoadedModel
from services.embed.errors import TextTooLongError
from services.embed.fingerprint import digest_of_bytes
from services.embed.model import EncodedText, ModelIdentity, Precision, Prompts, Truncation
from services.runtime.errors import InvalidRequestError, LodestoneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import TokenIds, Vectors

DEFAULT_DIMENSIONS: Final = 384
_SCHEME = "hashing-1"
_MAX_TOKENS = 2048
_TOKEN_BUDGET = 1 << 16
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+|[^\w\s]")
"""Words, parts of camelCase and snake_case names, numbers, words of other scripts, and signs."""
_START_ID = 1
_PAIR_WEIGHT = 0.5
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""The odd constant of multiplicative hashing: 2**64 divided by the golden ratio."""


def load_hashing(dimensions: int, *, max_text_chars: int) -> LoadedModel:
    """Returns the hashing backend and its encoder."""
    return LoadedModel(HashingBackend(dimensions), HashingEncoder(max_text_chars=max_text_chars))


class HashingEncoder:
    """Splits texts into words and gives each the CRC of its lower-case form as its id.

    Every text starts with a token of its own, so that an empty one has a vector too.
    """

    def __init__(self, *, max_text_chars: int, max_tokens: int = _MAX_TOKENS) -> None:
        self._max_text_chars = max_text_chars
        self._max_tokens = max_tokens

    @property
    def max_tokens(self) -> int:
        """Most tokens of one text."""
        return self._max_tokens

    def encode(
        self, texts: Sequence[str], truncation: Truncation, _route: str = "", prompt: str = ""
    ) -> list[EncodedText | LodestoneError]:
        """Returns one outcome per text, in order; it has no prompts, and knows none to keep."""
        return [self._encode(prompt + text, truncation) for text in texts]

    def _encode(self, text: str, truncation: Truncation) -> EncodedText | LodestoneError:
        from_start = truncation is Truncation.START
        part = text[-self._max_text_chars :] if from_start else text[: self._max_text_chars]
        try:
            part.encode()
        except UnicodeEncodeError:
            return InvalidRequestError("The text is not valid Unicode.")
        words = _WORD.findall(part)
        room = self._max_tokens - 1
        shortened = len(words) > room or len(part) < len(text)
        if shortened and truncation is Truncation.ERROR:
            tokens = max(len(words) + 1, self._max_tokens + 1)
            return TextTooLongError(tokens=tokens, limit=self._max_tokens)
        words = words[-room:] if from_start else words[:room]
        ids = [_START_ID, *(zlib.crc32(word.lower().encode()) for word in words)]
        return EncodedText(np.array(ids, dtype=np.int64), shortened)


class HashingBackend(AlwaysUp):
    """Adds each token, and each pair of neighbours, to a signed bucket; then normalises."""

    def __init__(self, dimensions: int = DEFAULT_DIMENSIONS) -> None:
        identity = ModelIdentity(
            weights=digest_of_bytes(_SCHEME.encode()),
            tokenizer=digest_of_bytes(_WORD.pattern.encode()),
            pipeline={"scheme": _SCHEME, "dimensions": dimensions},
            prompts=Prompts(),
            max_tokens=_MAX_TOKENS,
        )
        self._info = BackendInfo(
            name="hashing",
            precision=Precision.FLOAT32,
            dimensions=dimensions,
            concurrency=1,
            token_budget=_TOKEN_BUDGET,
            identity=identity,
        )

    @property
    def info(self) -> BackendInfo:
        """What this backend is."""
        return self._info

    def infer(self, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        """Returns one row per text; a row depends on its own tokens alone."""
        rows = np.zeros((len(batch), self._info.dimensions), dtype=np.float32)
        for at, ids in enumerate(batch):
            row = rows[at]
            self._add(row, ids.astype(np.uint64), 1.0)
            pairs = ids[:-1].astype(np.uint64) * np.uint64(31) + ids[1:].astype(np.uint64)
            self._add(row, pairs + np.uint64(1 << 40), _PAIR_WEIGHT)
            norm = float(np.linalg.norm(row))
            if norm == 0.0:  # all buckets cancelled out: keep the start token alone
                self._add(row, ids[:1].astype(np.uint64), 1.0)
                norm = float(np.linalg.norm(row))
            rows[at] = row / norm
        return rows

    def close(self) -> None:
        """Nothing is held."""

    def _add(
        self, row: Vectors, keys: np.ndarray[tuple[int], np.dtype[np.uint64]], weight: float
    ) -> None:
        with np.errstate(over="ignore"):  # wrapping is the point of this hash
            mixed = keys * _MIX
        buckets = (mixed >> np.uint64(32)) % np.uint64(self._info.dimensions)
        signs = np.where((mixed >> np.uint64(31)) & np.uint64(1), weight, -weight)
        np.add.at(row, buckets.astype(np.intp), signs.astype(np.float32))
