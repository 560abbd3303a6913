"""The state file tells what runs, and never more than is true."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from services.cli.processes import ProcessId, identify
from services.cli.state import ProcessState, StackState, read_state, write_state

if TYPE_CHECKING:
    from pathlib import Path


def test_a_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    entry = ProcessState(ProcessId(7, "boot:9"), "unix:/run/io.sock", {"LODESTONE_IO_X": "ab"})
    state = StackState({"io": entry}, run="/run", roots="local=/", embedded=False, ready=True)

    write_state(tmp_path / "state.json", state)

    assert read_state(tmp_path / "state.json") == state
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"processes": {"io": 1}}', '{"processes": 3}']
)
def test_a_broken_file_says_that_nothing_runs(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)

    assert read_state(tmp_path / "state.json") == StackState()


def test_all_that_are_needed_are_looked_at() -> None:
    me = identify(os.getpid())
    assert me is not None
    alive, gone = ProcessState(me, ""), ProcessState(ProcessId(me.pid, "another"), "")

    state = StackState({"io": alive, "embed": gone})

    assert state.dead() == ["postgres", "embed", "indexer"]
    assert StackState({"io": alive}, embedded=False).dead() == ["embed", "indexer"]
