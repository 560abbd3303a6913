"""Token ids of pairs: a query and a text as the one sequence that a cross-encoder reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.embed.canary import CANARY_QUERY
from services.embed.model import TYPE_SHIFT, EncodedText
from services.embed.tokenizer import BoundedIds, BoundedTokenizer
from services.runtime.errors import LodestoneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding, Tokenizer

    from services.embed.model import TokenIds, Truncation


class PairTokenizer:
    """Encodes a query with each text by a `tokenizers.Tokenizer`, cut to what the model reads.

    The query is tokenized once. What a pair is made of besides, and the type of each of its tokens,
    is what the tokenizer's own post-processor does with two texts.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, max_text_chars: int) -> None:
        self._form = _PairForm.of(tokenizer)
        self._max_tokens = max_tokens
        self._room = max_tokens - self._form.special_tokens
        self._bounded = BoundedTokenizer(tokenizer, room=self._room, max_text_chars=max_text_chars)

    @property
    def max_tokens(self) -> int:
        """Most tokens of one pair, special tokens included."""
        return self._max_tokens

    def encode(
        self,
        texts: Sequence[str],
        _truncation: Truncation,
        _route: str = "",
        _prompt: str = "",
    ) -> list[EncodedText | LodestoneError]:
        """Returns texts with the query of self-tests, as `encode_pairs` does."""
        return self.encode_pairs(CANARY_QUERY, texts)

    def encode_pairs(self, query: str, texts: Sequence[str]) -> list[EncodedText | LodestoneError]:
        """Returns one outcome per text, in order; too long a pair loses the end of its longer part.

        Raises:
            InvalidRequestError: the query is no Unicode.
        """
        (asked,) = self._bounded.encode([query])
        if isinstance(asked, LodestoneError):
            raise asked
        return [
            item if isinstance(item, LodestoneError) else self._joined(asked, item)
            for item in self._bounded.encode(texts)
        ]

    def _joined(self, query: BoundedIds, text: BoundedIds) -> EncodedText:
        query_room, text_room = longest_first(len(query.ids), len(text.ids), self._room)
        shortened = (
            query_room < len(query.ids)
            or text_room < len(text.ids)
            or not (query.is_whole and text.is_whole)
        )
        ids = self._form.joined(query.ids[:query_room], text.ids[:text_room])
        return EncodedText(ids, shortened)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns how many tokens of two texts stay: the longer one gives way, then both by halves.

    The rule `longest_first` of the `tokenizers` library, which trained models were cut by.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second)
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if first > second else (shorter, longer)


@dataclass(frozen=True, slots=True)
class _PairForm:
    """What stands before, between and behind the texts of a pair, with its types packed in."""

    head: list[int]
    middle: list[int]
    tail: list[int]
    first_type: int
    second_type: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _PairForm:
        """Reads the form off a pair of two words."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoding = tokenizer.encode("a", "a", add_special_tokens=True)
        parts = encoding.sequence_ids
        first, second = parts.index(0), parts.index(1)
        first_end = first + parts.count(0)
        second_end = second + parts.count(1)
        packed = _packed(encoding)
        return cls(
            packed[:first],
            packed[first_end:second],
            packed[second_end:],
            encoding.type_ids[first] << TYPE_SHIFT,
            encoding.type_ids[second] << TYPE_SHIFT,
        )

    @property
    def special_tokens(self) -> int:
        """Tokens of a pair of empty texts."""
        return len(self.head) + len(self.middle) + len(self.tail)

    def joined(self, first: list[int], second: list[int]) -> TokenIds:
        """Returns the ids of a pair."""
        return np.concatenate(
            [
                np.array(self.head, dtype=np.int64),
                np.array(first, dtype=np.int64) | self.first_type,
                np.array(self.middle, dtype=np.int64),
                np.array(second, dtype=np.int64) | self.second_type,
                np.array(self.tail, dtype=np.int64),
            ]
        )


def _packed(encoding: Encoding) -> list[int]:
    return [
        number | kind << TYPE_SHIFT
        for number, kind in zip(encoding.ids, encoding.type_ids, strict=True)
    ]
