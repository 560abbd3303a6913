"""Runs by what a user typed: a name, an id, or its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.listing import find_run
from services.runtime.exits import StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

ONE, TWO = "e1c4cc22-8cd7-4db3", "e1c4cc22-9000-4db3"
RUNS = [IndexRun(name=f"workspaces/tree/indexRuns/{run}") for run in (ONE, TWO, "0f")]


class _Indexer:
    """Has these runs."""

    def list_runs(self, _workspace: str, _most: int) -> Sequence[IndexRun]:
        return RUNS

    def get_run(self, name: str) -> IndexRun:
        return IndexRun(name=name)


@pytest.mark.parametrize(
    ("typed", "number"), [(ONE, 0), ("e1c4cc22-8", 0), (RUNS[0].name, 0), ("0f", 2)]
)
def test_a_run_is_found_by_what_names_it(typed: str, number: int) -> None:
    assert find_run(_Indexer(), typed) == RUNS[number]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("nosuch", "^nosuch: no such run. `lodestone runs` lists them"),
        ("e1c4cc23-", "no such run"),
        ("", "no such run"),
        ("workspaces/tree", "^workspaces/tree: no such run"),
        ("/", "no such run"),
        ("e1c4cc22", "^e1c4cc22: 2 runs begin with it: give more of the id"),
        ("e1c4", "^e1c4: give at least the first 8 characters of the id"),
    ],
)
def test_what_names_no_run_is_told_with_what_to_do(typed: str, told: str) -> None:
    """Red when all of them are no such run, or a name that is none is asked for."""
    with pytest.raises(StartError, match=told):
        find_run(_Indexer(), typed)  # type: ignore[arg-type]
