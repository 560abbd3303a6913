"""Splits a model that sends queries and documents through networks of their own (Router)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router

from services.embed.backends.suitability import UnsupportedModelError
from services.embed.model import Purpose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def has_routes(model: SentenceTransformer) -> bool:
    """Tells whether what a text is for decides the modules that it passes."""
    return any(isinstance(module, Router) for module in model)


def split(model: SentenceTransformer, *, device: str) -> dict[str, SentenceTransformer]:
    """Returns a plain model for each purpose; modules that they share are shared.

    Raises:
        UnsupportedModelError: a purpose has no route for text.
    """
    return {
        str(purpose): SentenceTransformer(
            modules=list(_modules(model, purpose)),
            device=device,
            prompts={name: text for name, text in model.prompts.items() if text},
            default_prompt_name=model.default_prompt_name,
            truncate_dim=model.truncate_dim,
        ).eval()
        for purpose in Purpose
    }


def _modules(model: SentenceTransformer, purpose: Purpose) -> Iterator[nn.Module]:
    for module in model:
        if not isinstance(module, Router):
            yield module
            continue
        try:
            # The library's own rule: a route may have another name than the purpose.
            route: Any = module._resolve_route(task=str(purpose), modality="text")  # noqa: SLF001
        except ValueError:
            raise UnsupportedModelError(f"it has no route for a {purpose} (Router)") from None
        modules: Any = module.sub_modules[route]
        yield from modules
