"""The whole product: three services and a PostgreSQL, started by the command itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import corpora
from tests.support.stack import Lodestone, lodestone

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL_CACHE = Path(__file__).parent.parent.parent / "build" / "test-models"
"""Converted models, kept between runs of the tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lies here as slow: it starts processes."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def product() -> Iterator[Lodestone]:
    """The product with the deterministic model, shared by tests that only index and search."""
    yield from lodestone(EMBED_MODEL="hashing")


@pytest.fixture
def fresh_product() -> Iterator[Lodestone]:
    """The product over an empty data folder, slowed down so that a run can be hit in its middle."""
    yield from lodestone(
        EMBED_MODEL="hashing",
        INDEXER_LEASE_SECONDS="2",
        INDEXER_EMBED_BATCH_NODES="16",
        INDEXER_EMBED_BATCHES_IN_FLIGHT="1",
    )


@pytest.fixture(scope="session")
def real_product() -> Iterator[Lodestone]:
    """The product with the model that users get."""
    yield from lodestone(EMBED_CACHE_DIR=str(MODEL_CACHE))


@pytest.fixture(scope="session")
def flask_source() -> Path:
    """The unpacked sdist of Flask; not to be written to."""
    return _corpus("flask")


@pytest.fixture
def flask(flask_source: Path, tmp_path: Path) -> Path:
    """A copy of Flask's package that a test may change."""
    return Path(shutil.copytree(flask_source / "src" / "flask", tmp_path / "flask"))


@pytest.fixture
def large_tree(flask_source: Path, tmp_path: Path) -> Path:
    """A copy of all of Flask's sdist that a test may change."""
    return Path(shutil.copytree(flask_source, tmp_path / "large"))


def _corpus(name: str) -> Path:
    (wanted,) = (corpus for corpus in corpora.read_list() if corpus.name == name)
    corpora.fetch(wanted, corpora.ROOT)
    return corpora.ROOT / name
