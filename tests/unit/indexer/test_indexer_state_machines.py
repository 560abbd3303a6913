"""The table in the documentation, the code and the schema name the same states and steps."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.indexer.storage import migrate
from services.indexer.transitions import (
    FINISHED_RUN_STATES,
    NODE_TRANSITIONS,
    OWNED_RUN_STATES,
    RUN_TRANSITIONS,
    NodeStatus,
    RunState,
    decide_final_state,
)

if TYPE_CHECKING:
    from types import ModuleType

_PAGE = Path(__file__).parents[3] / "docs" / "state-machines.md"
_WORD = re.compile(r"`(\w+)`")

Steps = dict[str, set[str]]


def _section(title: str) -> str:
    return _PAGE.read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0]


def _of_table(section: str) -> Steps:
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    return {_WORD.findall(state)[0]: set(_WORD.findall(steps)) for state, steps in rows}


def _of_picture(section: str, states: Steps) -> Steps:
    found: Steps = {state: set() for state in states}
    for old, new in re.findall(r"^\s+(\w+) --> (\w+)", section, re.MULTILINE):
        found[old].add(new)
    return found


def _migrations() -> list[ModuleType]:
    """Returns all revisions, oldest first."""
    folder = Path(migrate.__file__).parent / "migrations" / "versions"
    return [_module(path) for path in sorted(folder.glob("[0-9]*.py"))]


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"revision_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("title", "transitions"), [("Runs", RUN_TRANSITIONS), ("Nodes", NODE_TRANSITIONS)]
)
def test_the_page_shows_the_steps_that_the_code_allows(
    title: str, transitions: dict[RunState, frozenset[RunState]]
) -> None:
    expected = {str(state): {str(step) for step in steps} for state, steps in transitions.items()}

    assert _of_table(_section(title)) == expected
    assert _of_picture(_section(title), expected) == expected


@pytest.mark.parametrize(
    ("name", "transitions"), [("RUN_STEPS", RUN_TRANSITIONS), ("NODE_STEPS", NODE_TRANSITIONS)]
)
def test_the_database_allows_the_steps_that_the_code_allows(
    name: str, transitions: dict[RunState, frozenset[RunState]]
) -> None:
    newest = [getattr(each, name) for each in _migrations() if hasattr(each, name)][-1]
    steps = {state: set(following) for state, following in newest.items()}

    # A state that stays is no step of the row: the trigger looks at changes alone.
    assert steps == {
        str(state): {str(step) for step in following if step != state}
        for state, following in transitions.items()
    }


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        (r"state text NOT NULL DEFAULT 'queued' CHECK \(state IN\s+\((.*?)\)\)", set(RunState)),
        (r"finished_at IS NOT NULL\) = \(state IN\s+\((.*?)\)\)", FINISHED_RUN_STATES),
        (r"\(state IN \(([^()]*?)\)\) = \(owner IS NOT NULL\)", OWNED_RUN_STATES),
        (r"status IN \(('pending'.*?)\)\)", set(NodeStatus)),
        (
            r"runs_one_writer ON runs \(workspace_id\)\s+WHERE state IN\s+\((.*?)\)",
            OWNED_RUN_STATES,
        ),
    ],
)
def test_the_schema_checks_the_states_that_the_code_knows(
    pattern: str, states: set[RunState]
) -> None:
    schema = "\n".join("\n".join(each.STATEMENTS) for each in _migrations())

    *_, newest = re.finditer(pattern, schema, re.DOTALL)

    assert set(re.findall(r"'(\w+)'", newest[1])) == {str(state) for state in states}


def test_nothing_follows_the_end_and_everything_can_come_to_it() -> None:
    for state in RunState:
        reached, waiting = set[RunState](), [state]
        while waiting:
            step = waiting.pop()
            if step not in reached:
                reached.add(step)
                waiting += RUN_TRANSITIONS[step]
        assert reached & FINISHED_RUN_STATES
        assert (state in FINISHED_RUN_STATES) == (not RUN_TRANSITIONS[state])


def test_every_state_has_its_steps() -> None:
    assert set(RUN_TRANSITIONS) == set(RunState)
    assert set(NODE_TRANSITIONS) == set(NodeStatus)


@pytest.mark.parametrize(
    ("cancel", "stale", "failure", "left", "nodes", "files", "warnings"),
    list(
        itertools.product(
            (False, True), (False, True), (False, True), (0, 2), (0, 1), (0, 1), (0, 1)
        )
    ),
)
def test_the_end_of_a_run_is_decided_by_what_is_worst(
    *, cancel: bool, stale: bool, failure: bool, left: int, nodes: int, files: int, warnings: int
) -> None:
    state = decide_final_state(
        cancel_requested=cancel,
        abandoned=stale,
        stopped_by_failure=failure,
        nodes_left=left,
        nodes_failed=nodes,
        files_failed=files,
        warnings=warnings,
    )

    expected = RunState.SUCCEEDED
    if left or nodes or files or warnings:
        expected = RunState.SUCCEEDED_WITH_WARNINGS
    if failure:
        expected = RunState.FAILED
    if stale:
        expected = RunState.STALE
    if cancel:
        expected = RunState.CANCELLED
    assert state is expected
