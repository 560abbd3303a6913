"""A run is followed to its end, whatever happens to the connection or to the user's patience."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from services.cli.folder import DataFolder, open_folder
from services.cli.follow import RunFollower
from services.cli.indexer import Indexer
from services.cli.processes import ProcessId
from services.cli.progress import ProgressDisplay
from services.cli.state import ProcessState, write_state
from services.runtime.exits import ExitCode, StartError
from tests.support.scripted_indexer import RUN, Script, State, run_in, serve, state_of_all
from tests.support.stack import clean_environment, finish

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNING, SUCCEEDED, CANCELLED = (
    State.STATE_RUNNING,
    State.STATE_SUCCEEDED,
    State.STATE_CANCELLED,
)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def folder(script: Script) -> Iterator[DataFolder]:
    """A data folder in which all services run, and the indexer is the script."""
    base = Path(tempfile.mkdtemp(prefix="ls-"))
    made = open_folder(base / "data", print)
    made.logs.mkdir()
    with serve(script, base) as address:
        write_state(made.state, state_of_all(address))
        yield made
    shutil.rmtree(base)


@pytest.fixture
def indexer(folder: DataFolder) -> Iterator[Indexer]:
    client = Indexer(f"unix:{folder.root.parent}/indexer.sock")
    yield client
    client.close()


@pytest.fixture
def follower(indexer: Indexer, folder: DataFolder) -> RunFollower:
    return RunFollower(indexer, folder, ProgressDisplay())


def test_a_run_is_followed_to_its_end(script: Script, follower: RunFollower) -> None:
    script.watches.put([RUNNING, SUCCEEDED])

    assert follower.follow(run_in(State.STATE_QUEUED)).state == SUCCEEDED


def test_a_watch_that_ends_unavailable_goes_on_with_its_token(
    script: Script, follower: RunFollower
) -> None:
    script.watches.put([RUNNING, RUNNING, grpc.StatusCode.UNAVAILABLE])
    script.watches.put([SUCCEEDED])

    assert follower.follow(run_in(State.STATE_QUEUED)).state == SUCCEEDED
    assert script.tokens == ["", "t1"]


def test_a_watch_that_fails_otherwise_ends_the_command(
    script: Script, follower: RunFollower
) -> None:
    script.watches.put([RUNNING, grpc.StatusCode.INVALID_ARGUMENT])

    with pytest.raises(StartError, match="scripted") as failure:
        follower.follow(run_in(State.STATE_QUEUED))

    assert failure.value.code == ExitCode.USAGE


def test_ctrl_c_cancels_and_waits_for_the_end(script: Script, follower: RunFollower) -> None:
    script.watches.put([RUNNING, CANCELLED])
    threading.Thread(target=lambda: _interrupt_after(script.watching)).start()

    run = follower.follow(run_in(State.STATE_QUEUED))

    assert run.state == CANCELLED
    assert script.cancelled.is_set()


def test_signals_are_handled_as_before_once_the_run_is_over(
    script: Script, follower: RunFollower
) -> None:
    before = signal.getsignal(signal.SIGINT)
    script.watches.put([SUCCEEDED])

    follower.follow(run_in(State.STATE_QUEUED))

    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("name", ["io", "embed", "indexer"])
def test_a_service_that_dies_is_named(
    script: Script, follower: RunFollower, folder: DataFolder, name: str
) -> None:
    """The other side of a dead service may wait for it for ever; the command does not."""
    address = f"unix:{folder.root.parent}/indexer.sock"
    state = state_of_all(address)
    gone = ProcessState(ProcessId(os.getpid(), "another"), address)
    write_state(folder.state, replace(state, processes={**state.processes, name: gone}))
    folder.log(name).write_text(f"noise\nlodestone-{name}: out of memory\n")
    script.watches.put([RUNNING, CANCELLED])

    with pytest.raises(StartError, match=f"{name} service died.*out of memory") as failure:
        follower.follow(run_in(State.STATE_QUEUED))

    script.cancelled.set()
    assert failure.value.code == ExitCode.UNAVAILABLE
    assert "Run the same command again" in failure.value.message


@pytest.mark.parametrize(
    ("is_known", "told"),
    [(True, r"io service died \(its last line: killed\)"), (False, "io service was stopped")],
)
def test_what_an_earlier_process_wrote_is_not_told_of_one_that_dies(
    script: Script, follower: RunFollower, folder: DataFolder, *, is_known: bool, told: str
) -> None:
    """Red when the last telling line of the log is taken, whoever wrote it and when."""
    address = f"unix:{folder.root.parent}/indexer.sock"
    before = "lodestone-io: the port is taken\n"
    processes = dict(state_of_all(address).processes)
    del processes["io"]
    if is_known:
        gone = ProcessId(os.getpid(), "another")
        processes["io"] = ProcessState(gone, address, log_start=len(before))
    write_state(folder.state, replace(state_of_all(address), processes=processes))
    folder.log("io").write_text(f"{before}killed\n")
    script.watches.put([RUNNING, CANCELLED])

    with pytest.raises(StartError, match=told):
        follower.follow(run_in(State.STATE_QUEUED))

    script.cancelled.set()


def test_index_prints_exactly_one_json_object(script: Script, folder: DataFolder) -> None:
    script.watches.put([RUNNING, SUCCEEDED])

    done = finish(_index(folder))

    assert done.code == ExitCode.OK, done.stderr
    assert json.loads(done.stdout)["state"] == "succeeded"


def test_index_makes_a_run_of_its_own_behind_one_that_was_there(
    script: Script, folder: DataFolder
) -> None:
    """The run that was there may have passed the user's files before they were saved."""
    script.created = [False, True]
    script.watches.put([SUCCEEDED])
    script.watches.put([SUCCEEDED])

    done = finish(_index(folder))

    assert done.code == ExitCode.OK, done.stderr
    assert script.runs_made == 2
    assert "following it to its end" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_index_ends_cancelled_with_130(
    script: Script, folder: DataFolder, number: signal.Signals
) -> None:
    script.watches.put([RUNNING, CANCELLED])
    process = _index(folder)
    assert script.watching.wait(20)

    process.send_signal(number)
    done = finish(process)

    assert done.code == ExitCode.INTERRUPTED, done.stderr
    assert json.loads(done.stdout)["state"] == "cancelled"
    assert "goes on where it was" in done.stderr


def test_a_second_ctrl_c_leaves_at_once(script: Script, folder: DataFolder) -> None:
    script.watches.put([RUNNING, State.STATE_CANCELLING, *[RUNNING] * 3, CANCELLED])
    script.may_end.clear()
    process = _index(folder)
    assert script.watching.wait(20)

    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    done = finish(process)
    script.may_end.set()

    assert done.code == ExitCode.INTERRUPTED
    assert "Interrupted" in done.stderr


def test_a_missing_resource_is_told_by_its_reason(indexer: Indexer) -> None:
    with pytest.raises(StartError, match=r"There is no run x\. \(NOT_FOUND\)") as failure:
        indexer.get_run("x")

    assert failure.value.code == ExitCode.FAILED


def test_a_wrong_field_is_named(indexer: Indexer) -> None:
    with pytest.raises(StartError, match="parent: must match") as failure:
        indexer.list_runs("x", 1)

    assert failure.value.code == ExitCode.USAGE


def test_a_server_that_is_not_there_is_told_with_what_to_do() -> None:
    client = Indexer("unix:/nonexistent/indexer.sock")

    with pytest.raises(StartError, match="lodestone up") as failure:
        client.list_runs("workspaces/-", 1)

    client.close()
    assert failure.value.code == ExitCode.UNAVAILABLE
    assert RUN not in failure.value.message


def _interrupt_after(event: threading.Event) -> None:
    assert event.wait(10)
    os.kill(os.getpid(), signal.SIGINT)


def _index(folder: DataFolder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.cli", "index", ".", "--json"],
        env={**clean_environment(), "LODESTONE_DATA_DIR": str(folder.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
