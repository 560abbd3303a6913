"""Texts that go to a remote model, and what comes back when its provider is well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.embed.backends.hashing import HashingBackend
from services.embed.model import EncodedText, Truncation
from tests.unit.embed.harness import ids_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.backends.protocol import LoadedModel
    from services.embed.model import TokenIds, Vectors

TEXTS = ["", "return None", "def add(a, b):\n    return a + b", "удалить", "x" * 500]
CLOSED_PORT_URL = "http://127.0.0.1:1/v1"


def _ids(model: LoadedModel, texts: Sequence[str]) -> list[TokenIds]:
    encoded = model.encoder.encode(texts, Truncation.END)
    return [item.ids for item in encoded if isinstance(item, EncodedText)]


def infer(model: LoadedModel, texts: Sequence[str] = TEXTS) -> Vectors:
    """Returns the rows of texts."""
    return model.backend.infer(_ids(model, texts))


def expected(texts: Sequence[str] = TEXTS) -> Vectors:
    """Returns the rows that the provider makes of texts."""
    return HashingBackend(384).infer([ids_of(text or " ") for text in texts])
