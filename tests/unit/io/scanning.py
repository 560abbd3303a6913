"""Scans a folder with the rules of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.io.model import ScanBatch, ScanSummary, SymlinkPolicy
from services.io.names import NameRules
from services.io.scanner import ScanRules, TreeScan
from tests.unit.io.harness import open_tree

if TYPE_CHECKING:
    from pathlib import Path

NAMES = NameRules(("*.gen.py",))


def scan(
    top: Path,
    policy: SymlinkPolicy = SymlinkPolicy.WITHIN_ROOT,
    directory: str = "",
    **rules: object,
) -> tuple[list[str], ScanSummary, list[ScanBatch]]:
    """Returns the paths of a whole scan, its summary and its batches."""
    options = {"max_file_bytes": 1000, "names": NAMES, **rules}
    with open_tree(top, policy, directory) as tree:
        batches = list(TreeScan(tree, ScanRules(**options)).batches())  # type: ignore[arg-type]
    paths = [file.path for batch in batches for file in batch.files]
    summary = batches[-1].summary
    assert summary is not None
    return paths, summary, batches
