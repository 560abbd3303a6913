"""A tree in a temporary folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles


@pytest.fixture
def make_files(tmp_path: Path) -> MakeFiles:
    """Returns a function that writes files into the root `tree`, and returns that folder."""

    def make(files: Mapping[str, str | bytes]) -> Path:
        top = tmp_path / "tree"
        top.mkdir(exist_ok=True)
        for path, content in files.items():
            place = top / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.encode() if isinstance(content, str) else content)
        return top

    return make
