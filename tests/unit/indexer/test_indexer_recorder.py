"""The ledger alone writes runs, their outcomes and scopes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[3] / "services"
_WRITES = re.compile(
    r"(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|TRUNCATE)\s+(?:runs|run_outcomes|run_nodes)\b",
    re.IGNORECASE,
)
_WRITERS = re.compile(r"storage/run_\w+\.py$")
_MAY_IMPORT = {
    "services/indexer/storage/nodes.py": {"run_rows", "run_scope"},
    "services/indexer/storage/model_queue.py": {"run_rows", "run_scope"},
    "services/indexer/storage/watches.py": {"run_rows"},
    "services/indexer/app.py": {"run_retention"},
}
"""Who reads the ledger's constants to join its tables."""


def _modules() -> list[tuple[str, str]]:
    return [
        (path.relative_to(_FOLDER.parent).as_posix(), path.read_text("utf-8"))
        for path in sorted(_FOLDER.rglob("*.py"))
        if "migrations" not in path.parts
    ]


def test_statements_that_write_the_ledger_stand_in_its_modules_alone() -> None:
    """Red with `UPDATE runs` in the store of workspaces."""
    found = [name for name, text in _modules() if _WRITES.search(text)]

    assert [name for name in found if not _WRITERS.search(name)] == []
    assert found, "the statements are found at all"


def test_the_ledger_alone_calls_the_modules_that_write() -> None:
    """Red with an import of `run_progress` in the queue of nodes."""
    for name, text in _modules():
        if name == "services/indexer/ledger.py" or _WRITERS.search(name):
            continue
        used = set(re.findall(r"services\.indexer\.storage\.(run_\w+)", text))
        assert used <= _MAY_IMPORT.get(name, set()), name


@pytest.mark.parametrize(
    "text", ["UPDATE  runs SET", "delete from run_outcomes", "INSERT INTO runs"]
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert _WRITES.search(text)
