"""Ignore files that make each name take long hold up nobody once their scan or watch is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from services.io.origins import Origins
from services.io.scanner import TreeScan
from services.io.watch.model import WatchOptions
from services.io.watch.watcher import TreeWatcher
from tests.unit.io.harness import open_tree
from tests.unit.io.watching import RULES, wait_for

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

PATTERNS = [f"**/*{'a' * 90}{number:05}x" for number in range(400)]
"""Each looks for its letters at each place of a path that has no others."""
FOLDERS, FILES = ["a" * 250] * 12, 90


@pytest.fixture
def slow_names(tmp_path: Path) -> Path:
    """A tree whose one folder of files lies deep, so that names in it take longest."""
    place = tmp_path
    for folder in FOLDERS:
        place /= folder
        place.mkdir()
    (tmp_path / ".gitignore").write_text("\n".join(PATTERNS))
    (place / "a0").touch()
    return place


def scan_seconds(top: Path, left_after: float = 3600.0) -> float:
    began = time.monotonic()
    with open_tree(top) as tree:
        scan = TreeScan(tree, RULES, lambda: time.monotonic() > began + left_after)
        is_whole = [batch.summary for batch in scan.batches()] != []
    assert is_whole is (left_after == 3600.0)
    return time.monotonic() - began


def test_a_scan_that_is_left_stops_within_a_folder(tmp_path: Path, slow_names: Path) -> None:
    """Red where it asks from folder to folder alone, and goes through up to a thousand names."""
    of_one = scan_seconds(tmp_path)
    for number in range(1, FILES):
        (slow_names / f"a{number}").touch()
    assert scan_seconds(tmp_path, 2 * of_one) < 4 * of_one


def test_a_watch_that_is_ended_stops_within_a_folder(tmp_path: Path, slow_names: Path) -> None:
    """Red where a watch that sets itself up asks from folder to folder alone."""

    def watcher() -> TreeWatcher:
        return TreeWatcher(
            lambda: open_tree(tmp_path), RULES, Origins(), WatchOptions(), lambda: None
        )

    first, began = watcher(), time.monotonic()
    first.start()
    wait_for(lambda: first.is_ready)
    of_one = time.monotonic() - began
    first.stop()
    first.join()
    for number in range(1, FILES):
        (slow_names / f"a{number}").touch()
    second, began = watcher(), time.monotonic()
    second.start()
    time.sleep(2 * of_one)
    assert not second.is_ready
    second.stop()
    second.join()
    assert time.monotonic() - began < 4 * of_one
