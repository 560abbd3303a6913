"""Fixtures: a quiet log, a free address, a provider and models of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import structlog

from services.embed.backends.remote import retrying
from services.runtime import log
from tests.support.embeddings_api import EmbeddingsApi, serving_embeddings
from tests.unit.embed.harness import remote_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.embed.backends.protocol import LoadedModel


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


@pytest.fixture
def opened() -> Iterator[list[LoadedModel]]:
    """Models that are closed at the end."""
    models: list[LoadedModel] = []
    yield models
    for model in models:
        model.backend.close()


@pytest.fixture
def load(api: EmbeddingsApi, opened: list[LoadedModel]) -> Callable[..., LoadedModel]:
    """Loads a remote model with settings of the test's choice."""

    def load_with(**fields: Any) -> LoadedModel:
        model = remote_model(api.url, **fields)
        opened.append(model)
        return model

    return load_with


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of whether something is sent again, not of how long that waits."""
    monkeypatch.setattr(retrying, "_FIRST_WAIT_SECONDS", 0.01)
