"""Token ids from texts by the model's own tokenizer, in bounded time whatever the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.embed.errors import BadVectorError, TextTooLongError
from services.embed.model import EncodedText, TokenIds, Truncation
from services.runtime.errors import InvalidRequestError, LodestoneError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

_FIRST_LOOK_CHARS_PER_TOKEN = 16
"""Code has three to four characters a token: four times that is nearly always enough."""
_LOOK_GROWTH = 8
_SEAM_TOKENS = 128
"""Tokens beside a cut of the characters that may differ from those of the whole text: a word of
BERT's tokenizer has at most 100 characters."""


@dataclass(frozen=True, slots=True)
class BoundedIds:
    """Token ids of a text; when it is not whole, of the part that was looked at."""

    ids: list[int]
    is_whole: bool


class BoundedTokenizer:
    """Token ids without special ones, of as much of a text as fills some room.

    The tokenizer itself neither cuts nor pads. A long text is looked at from the end that is kept,
    in growing parts: a line of 50 MB costs what its first 256 tokens cost.
    """

    def __init__(self, tokenizer: Tokenizer, *, room: int, max_text_chars: int) -> None:
        self._tokenizer = tokenizer
        self._room = room
        self._max_text_chars = max_text_chars

    def encode(
        self, texts: Sequence[str], *, from_start: bool = True
    ) -> list[BoundedIds | LodestoneError]:
        """Returns one outcome per text, in order: all its ids, or at least as many as have room.

        A text that is no Unicode (a lone surrogate) is an InvalidRequestError, and one that the
        tokenizer fails on a BadVectorError.
        """
        outcomes: list[BoundedIds | LodestoneError | None] = [None] * len(texts)
        waiting = []
        for position, text in enumerate(texts):
            if _is_unicode(text):
                waiting.append(position)
            else:
                outcomes[position] = InvalidRequestError("The text is not valid Unicode.")
        look = self._room * _FIRST_LOOK_CHARS_PER_TOKEN
        while waiting:
            waiting = self._encode_parts(texts, waiting, look, outcomes, from_start=from_start)
            look *= _LOOK_GROWTH
        assert None not in outcomes
        return [outcome for outcome in outcomes if outcome is not None]

    def _encode_parts(
        self,
        texts: Sequence[str],
        positions: list[int],
        look: int,
        outcomes: list[BoundedIds | LodestoneError | None],
        *,
        from_start: bool,
    ) -> list[int]:
        """Fills the outcomes that `look` characters decide; returns positions that need more."""
        look = min(look, self._max_text_chars)
        parts = [texts[at][:look] if from_start else texts[at][-look:] for at in positions]
        undecided = []
        for position, part, ids in zip(positions, parts, self._ids_of(parts), strict=True):
            if isinstance(ids, LodestoneError):
                outcomes[position] = ids
                continue
            whole = len(part) == len(texts[position])
            if whole or look == self._max_text_chars or len(ids) >= self._room + _SEAM_TOKENS:
                outcomes[position] = BoundedIds(ids, whole)
            else:
                undecided.append(position)
        return undecided

    def _ids_of(self, parts: Sequence[str]) -> list[list[int] | LodestoneError]:
        """Returns the ids of each part; when the tokenizer fails on all, it gets each alone."""
        try:
            encodings = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        except BaseException as error:  # noqa: BLE001 - it may also panic, which is no Exception
            if len(parts) == 1:
                return [_failure(error)]
            return [ids for part in parts for ids in self._ids_of([part])]
        return [encoding.ids for encoding in encodings]


class ModelTokenizer:
    """Encodes texts with a `tokenizers.Tokenizer`, cut to what the model reads.

    It tokenizes without special tokens and adds them itself, so that cutting the start or the end
    keeps them, and so that whether a text was cut needs no second pass.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, max_text_chars: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._head, self._tail = _special_tokens(tokenizer)
        self._max_tokens = max_tokens
        self._room = max_tokens - len(self._head) - len(self._tail)
        self._bounded = BoundedTokenizer(tokenizer, room=self._room, max_text_chars=max_text_chars)

    @property
    def max_tokens(self) -> int:
        """Most tokens of one text, special tokens included."""
        return self._max_tokens

    def encode(
        self, texts: Sequence[str], truncation: Truncation, _route: str = "", prompt: str = ""
    ) -> list[EncodedText | LodestoneError]:
        """Returns one outcome per text, behind the prompt, in order.

        Too long a text is a TextTooLongError where it may not be cut, and a text that is no
        Unicode (a lone surrogate) an InvalidRequestError.
        """
        if prompt and truncation is Truncation.START:
            return self._encode_ends(texts, prompt)
        found = self._bounded.encode(
            [prompt + text for text in texts] if prompt else texts,
            from_start=truncation is not Truncation.START,
        )
        return [
            item if isinstance(item, LodestoneError) else self._cut(item, truncation)
            for item in found
        ]

    def _encode_ends(self, texts: Sequence[str], prompt: str) -> list[EncodedText | LodestoneError]:
        """Returns texts behind the prompt; where they do not fit, the prompt and their ends."""
        outcomes = self.encode(texts, Truncation.END, "", prompt)
        long = [
            place
            for place, outcome in enumerate(outcomes)
            if isinstance(outcome, EncodedText) and outcome.shortened
        ]
        kept = self._bounded.encode([prompt])[0] if long else None
        if not isinstance(kept, BoundedIds) or len(kept.ids) >= self._room:
            return outcomes
        room = self._room - len(kept.ids)
        ends = self._bounded.encode([texts[place] for place in long], from_start=False)
        for place, end in zip(long, ends, strict=True):
            if isinstance(end, BoundedIds):
                ids = self._with_special_tokens([*kept.ids, *end.ids[-room:]])
                outcomes[place] = EncodedText(ids, len(end.ids) > room or not end.is_whole)
            else:
                outcomes[place] = end
        return outcomes

    def _cut(self, found: BoundedIds, truncation: Truncation) -> EncodedText | LodestoneError:
        ids = found.ids
        shortened = len(ids) > self._room or not found.is_whole
        if shortened and truncation is Truncation.ERROR:
            tokens = max(len(ids) + len(self._head) + len(self._tail), self._max_tokens + 1)
            return TextTooLongError(tokens=tokens, limit=self._max_tokens)
        if len(ids) > self._room:
            ids = ids[-self._room :] if truncation is Truncation.START else ids[: self._room]
        return EncodedText(self._with_special_tokens(ids), shortened)

    def _with_special_tokens(self, ids: list[int]) -> TokenIds:
        return np.array([*self._head, *ids, *self._tail], dtype=np.int64)


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns what the tokenizer puts before and after a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    body = len(tokenizer.encode("a", add_special_tokens=False).ids)
    mask = encoding.special_tokens_mask
    head = mask.index(0) if 0 in mask else len(mask)
    return encoding.ids[:head], encoding.ids[head + body :]


def _failure(error: BaseException) -> BadVectorError:
    # Its message may quote the text.
    kind = type(error).__name__
    get_logger().warning("tokenizer_failed", error=kind)
    return BadVectorError(f"The model's tokenizer failed on this text ({kind}).")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
