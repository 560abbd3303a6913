"""Fixtures: a quiet log and a free address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

from services.runtime import log
from tests.support.embeddings_api import EmbeddingsApi, serving_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    """Logs go where a service's logs go, so that a test can read them."""
    log.configure("embed", "info", "json")
    yield
    structlog.reset_defaults()


@pytest.fixture
def api() -> Iterator[EmbeddingsApi]:
    """A provider that is well until a test says otherwise."""
    with serving_embeddings() as running:
        yield running


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A free Unix socket's address."""
    return f"unix:{tmp_path}/s"
