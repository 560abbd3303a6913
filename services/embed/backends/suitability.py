"""Which sentence-transformers models this service can run, and what to say of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.embed.model import Prompts

if TYPE_CHECKING:
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_EXPECTED_FIRST = "Transformer"


class UnsupportedModelError(Exception):
    """The model needs something that this path does not do; the message says what."""


def why_unsuitable(model: SentenceTransformer, folder: Path, prompts: Prompts) -> str:
    """Returns why a model must not serve, though the library loads it; empty when it may."""
    names = [type(module).__name__ for module in model]
    if "Router" in names:
        return "it has a network for queries and another for documents (Router)"
    if names[:1] != [_EXPECTED_FIRST]:
        return f"its first module is {names[0] if names else 'missing'}, not {_EXPECTED_FIRST}"
    if not holds_tokenizer(folder):
        # The library makes up a tokenizer that knows no word, and vectors that mean nothing.
        return "its folder holds no tokenizer"
    if getattr(model.tokenizer, "backend_tokenizer", None) is None:
        return "it has no fast tokenizer (tokenizer.json)"
    if prompts != Prompts() and not all(
        getattr(module, "include_prompt", True) for module in model
    ):
        return "it leaves its prompt out of the pooling"
    return ""


def holds_tokenizer(folder: Path) -> bool:
    """Tells whether a tokenizer lies beneath a folder."""
    # Whole lists: a walk that is left half-way keeps its folder open until it is collected.
    return any(list(folder.rglob(name)) for name in _TOKENIZER_FILES)
