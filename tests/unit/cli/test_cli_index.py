"""What `lodestone index` tells to try next is a command that works as it stands."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from services.cli.index import IndexOptions, _next_command

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def _options(root: Path, path: str) -> IndexOptions:
    return IndexOptions(
        root=root,
        path=path,
        workspace="",
        full=False,
        exclude=(),
        only=(),
        model="",
        as_json=False,
        first_search=False,
        query="",
    )


def test_what_to_try_next_finds_the_folder_and_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when the path of the one or the other is left out, or stands there as it is."""
    root = tmp_path / "my index"

    told = shlex.split(_next_command(_options(root, "my $project")))

    assert told[1:] == [
        *("lodestone", "search", "--data-dir", str(root), "--path", "my $project"),
        "what you look for",
    ]
    monkeypatch.setenv("LODESTONE_DATA_DIR", str(root))
    assert "--data-dir" not in _next_command(_options(root, "x"))


def test_what_to_try_next_is_the_command_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make index` runs one that is on no search path; red when it is told by its name alone."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [".venv/bin/lodestone"])

    assert _next_command(_options(tmp_path, "x")).startswith("Try: .venv/bin/lodestone search ")
