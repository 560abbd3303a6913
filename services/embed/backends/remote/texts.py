"""Texts as token ids and back, for a model whose tokenizer is at the other end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from services.embed.errors import TextTooLongError
from services.embed.model import EncodedText, TokenIds, Truncation
from services.runtime.errors import InvalidRequestError, LodestoneError

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEME: Final = "utf8x3"
BYTES_PER_ID: Final = 3
"""Code has three to four bytes a token: the number of ids is an estimate of the provider's tokens
that is rather too high, so that limits counted in it hold."""
_FILL = b"\xff"
"""A byte that no UTF-8 text has: it fills the last id."""
_NO_TEXT = " "
"""Providers refuse an empty input; a blank is the closest they take."""


class Utf8Encoder:
    """Gives texts as ids that each hold three bytes of UTF-8.

    Rows of ids are what the service queues, packs and compares, and what `text_of` turns back into
    the very text. `max_tokens` ids are the most that are sent of one text; cuts keep whole
    characters.
    """

    def __init__(self, *, max_tokens: int, max_text_chars: int) -> None:
        self._max_tokens = max_tokens
        self._max_text_chars = max_text_chars

    @property
    def max_tokens(self) -> int:
        """Most ids of one text."""
        return self._max_tokens

    def encode(
        self, texts: Sequence[str], truncation: Truncation, _route: str = "", prompt: str = ""
    ) -> list[EncodedText | LodestoneError]:
        """Returns one outcome per text, behind the prompt, in order."""
        if truncation is Truncation.START:
            return [self._encode(text, truncation, prompt) for text in texts]
        return [self._encode(prompt + text, truncation) for text in texts]

    def _encode(
        self, text: str, truncation: Truncation, kept: str = ""
    ) -> EncodedText | LodestoneError:
        """Returns a text, cut to what fits, behind what is kept whatever is cut."""
        from_start = truncation is Truncation.START
        part = text[-self._max_text_chars :] if from_start else text[: self._max_text_chars]
        try:
            data = part.encode()
        except UnicodeEncodeError:
            return InvalidRequestError("The text is not valid Unicode.")
        room = self._max_tokens * BYTES_PER_ID
        before = _cut(kept.encode(), room)
        room -= len(before)
        shortened = len(data) > room or len(part) < len(text) or len(before) < len(kept.encode())
        if shortened and truncation is Truncation.ERROR:
            tokens = max(-(-len(data) // BYTES_PER_ID), self._max_tokens + 1)
            return TextTooLongError(tokens=tokens, limit=self._max_tokens)
        if len(data) > room:
            data = _cut(data, room, from_start=from_start)
        return EncodedText(_ids_of(before + data), shortened)


def _cut(data: bytes, room: int, *, from_start: bool = False) -> bytes:
    """Returns the last or the first so many bytes, without the part of a character."""
    cut = data[max(0, len(data) - room) :] if from_start else data[:room]
    return cut.decode(errors="ignore").encode()


def text_of(ids: TokenIds) -> str:
    """Returns the text of ids."""
    parts = ids.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :BYTES_PER_ID]
    return parts.tobytes().rstrip(_FILL).decode() or _NO_TEXT


def _ids_of(data: bytes) -> TokenIds:
    count = max(1, -(-len(data) // BYTES_PER_ID))
    filled = data.ljust(count * BYTES_PER_ID, _FILL)
    parts = np.zeros((count, 4), dtype=np.uint8)
    parts[:, :BYTES_PER_ID] = np.frombuffer(filled, dtype=np.uint8).reshape(count, BYTES_PER_ID)
    return parts.view("<u4").reshape(count).astype(np.int64)
