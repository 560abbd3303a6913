"""The processes over one data folder: starts what is missing, waits until all serve, stops them."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from services.cli import caller
from services.cli.environment import (
    DATABASE_URL,
    DEFAULT_ROOTS,
    IO_ROOTS,
    changed_settings,
    check_before_restart,
    check_environment,
    check_listening,
    given_settings,
    has_unseen_names,
    listen_variable,
    seen_from_here,
    service_environment,
)
from services.cli.folder import DataFolder, find_folder, locked, open_folder
from services.cli.logs import log_end
from services.cli.preflight import START_TIMEOUT_VARIABLE, check_space, start_timeout
from services.cli.state import POSTGRES, SERVICES, ProcessState, StackState, read_state, write_state
from services.cli.terminal import Waiting, note
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from services.cli.postgres import EmbeddedPostgres
    from services.cli.sockets import RunFolder
    from services.cli.spawn import Child

STOP_ORDER = ("indexer", "embed", "io")
_STOP_GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.05
_WAITS = {
    "io": "Waiting for the io service",
    "embed": "Waiting for the embed service, which loads the model (longer the first time)",
    "indexer": "Waiting for the indexer service",
}


class Stack:
    """PostgreSQL and the three services of one data folder."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self._root = root
        self._environment = seen_from_here(environment)
        self._started: list[Child] = []
        self._database_started: ProcessState | None = None

    def ensure(self) -> StackState:
        """Returns when everything runs and serves; starts what does not.

        When it cannot, what this call started is stopped again.

        Raises:
            StartError: what is wrong, with the exit code of the process that told it.
        """
        folder = find_folder(self._root)
        if folder is not None:
            state = read_state(folder.state)
            recorded = [name for item in state.processes.values() for name in item.settings]
            if has_unseen_names(recorded, self._environment):
                check_environment(self._environment)
            amiss = state.dead() or state.cut_off() or self._outdated(state)
            if state.ready and not amiss:
                return state
        with caller.command_step("lodestone.cli.start"):
            return self._start_missing()

    def stop(self) -> list[str]:
        """Stops everything in order; returns the names of what ran. Stopping twice is harmless."""
        folder = find_folder(self._root)
        if folder is None:
            return []
        with locked(folder, note):
            state = read_state(folder.state)
            running = [name for name in (*STOP_ORDER, POSTGRES) if state.runs(name)]
            for name in running:
                _stop_process(name, state.processes[name])
                state = _without(state, name)
            with suppress(OSError):  # a disk that is full: of what is stopped nobody believes it
                write_state(folder.state, state)
            if state.run and folder.root.joinpath(state.run) != folder.root:
                # Sockets of a long path lie elsewhere: nothing of this folder's stays there.
                shutil.rmtree(state.run, ignore_errors=True)
        return running

    def _start_missing(self) -> StackState:
        start_timeout(self._environment)
        check_environment(self._environment)
        check_listening(self._environment)
        check_space(self._root)
        waiting = Waiting()
        folder = open_folder(self._root, note)
        try:
            with locked(folder, note):
                state = self._spawn_missing(folder, waiting)
            children = [self._child(folder, state, name) for name in SERVICES]
            self._wait(children, waiting)
            with locked(folder, note):
                state = replace(read_state(folder.state), ready=True)
                write_state(folder.state, state)
        except BaseException:
            waiting.close()
            self._undo(folder)
            raise
        waiting.close()
        for child in self._started:
            child.release()
        return state

    def _spawn_missing(self, folder: DataFolder, waiting: Waiting) -> StackState:
        """Spawns in the order of how long each takes; the indexer needs the database first."""
        from services.cli.sockets import RunFolder, choose_run_folder

        before = read_state(folder.state)
        state = self._stop_outdated(folder, _without_cut_off(folder, before))
        if any(state.runs(name) for name in state.processes):
            run = RunFolder(folder.root.joinpath(state.run))  # where those that run look
        else:
            run = choose_run_folder(folder, self._environment)
        run.services.mkdir(mode=0o700, exist_ok=True)
        folder.logs.mkdir(mode=0o700, exist_ok=True)
        folder.models.mkdir(mode=0o700, exist_ok=True)
        folder.io_state.mkdir(mode=0o700, exist_ok=True)
        if not state.runs("indexer"):
            state = replace(state, embedded=not self._environment.get(DATABASE_URL))
        state = replace(state, run=str(run.root), ready=False)
        if state.embedded and not state.runs(POSTGRES):
            self._database(folder, run).require_free()
        for name in ("embed", "io"):
            state = self._spawn(folder, run, state, name)
        if _moved(before, state) and state.runs("indexer"):
            state = _stopped(folder, state, "indexer")  # it would call where nobody listens
        url = self._environment.get(DATABASE_URL, "")
        if state.embedded:
            waiting.tell("Starting PostgreSQL")
            state, url = self._start_database(folder, run, state)
        return self._spawn(folder, run, state, "indexer", url)

    def _spawn(
        self, folder: DataFolder, run: RunFolder, state: StackState, name: str, url: str = ""
    ) -> StackState:
        from services.cli.spawn import spawn_service

        if state.runs(name):
            return state
        environment = service_environment(name, folder, run, self._listening(state), url)
        address = environment[listen_variable(name)]
        child = spawn_service(name, environment, address, folder.log(name))
        self._started.append(child)
        given = given_settings(name, self._environment)
        entry = ProcessState(child.process, address, given, child.log_start)
        state = _with(state, name, entry)
        if name == "io":
            state = replace(state, roots=environment.get(IO_ROOTS, DEFAULT_ROOTS))
        write_state(folder.state, state)
        return state

    def _listening(self, state: StackState) -> dict[str, str]:
        """The user's settings, with the addresses at which running services do listen."""
        addresses = {
            listen_variable(name): state.processes[name].address
            for name in SERVICES
            if state.runs(name)
        }
        return {**self._environment, **addresses}

    def _database(self, folder: DataFolder, run: RunFolder) -> EmbeddedPostgres:
        from services.cli.database import embedded_database

        return embedded_database(folder, run, self._environment)

    def _start_database(
        self, folder: DataFolder, run: RunFolder, state: StackState
    ) -> tuple[StackState, str]:
        server = self._database(folder, run)
        if state.runs(POSTGRES):
            return state, server.url
        log_start = log_end(folder.log(POSTGRES))
        process = server.start()
        self._database_started = ProcessState(process, str(run.postgres), {}, log_start)
        state = _with(state, POSTGRES, self._database_started)
        write_state(folder.state, state)
        return state, server.url

    def _stop_outdated(self, folder: DataFolder, state: StackState) -> StackState:
        outdated = self._outdated(state)
        check_before_restart(outdated, self._environment)
        for name in STOP_ORDER:
            if name in outdated and state.runs(name):
                note(f"Restarting the {name} service: {', '.join(outdated[name])} changed.")
                state = _stopped(folder, state, name)
        return state

    def _outdated(self, state: StackState) -> dict[str, list[str]]:
        """Services whose settings the environment sets to something else, and which settings."""
        outdated = {}
        for name in SERVICES:
            if state.runs(name):
                given = given_settings(name, self._environment)
                changed = changed_settings(state.processes[name].settings, given)
                if changed:
                    outdated[name] = changed
        if "embed" in outdated and state.runs("indexer"):
            # The indexer registers the model that embed serves when it starts.
            outdated.setdefault("indexer", outdated["embed"])
        return outdated

    def _child(self, folder: DataFolder, state: StackState, name: str) -> Child:
        from services.cli.spawn import Child

        for child in self._started:
            if child.name == name:
                return child
        known = state.processes[name]
        log = folder.log(name)
        return Child(name, known.process, known.address, log, None, known.log_start)

    def _wait(self, children: list[Child], waiting: Waiting) -> None:
        from services.cli.health import is_serving

        deadline = time.monotonic() + start_timeout(self._environment)
        left = {child.name: child for child in children}
        while left:
            for child in list(left.values()):
                child.check()
                if is_serving(child.address):
                    del left[child.name]
            if not left:
                return
            name = next(name for name in ("embed", "io", "indexer") if name in left)
            waiting.tell(_WAITS[name])
            if time.monotonic() > deadline:
                raise StartError(
                    ExitCode.UNAVAILABLE,
                    f"The {name} service does not serve yet; its log is {left[name].log}. "
                    f"Set {START_TIMEOUT_VARIABLE} to wait longer.",
                )
            time.sleep(_POLL_SECONDS)

    def _undo(self, folder: DataFolder) -> None:
        """Stops what this call started, so that a failed start leaves what it found."""
        if not self._started and self._database_started is None:
            return
        with locked(folder, note):
            state = read_state(folder.state)
            for child in sorted(self._started, key=lambda child: STOP_ORDER.index(child.name)):
                _stop_process(child.name, ProcessState(child.process, child.address))
                if child.popen is not None:
                    child.popen.wait()
                state = _without(state, child.name)
            if self._database_started is not None:
                _stop_process(POSTGRES, self._database_started)
                state = _without(state, POSTGRES)
            write_state(folder.state, state)


def _without_cut_off(folder: DataFolder, state: StackState) -> StackState:
    """Stops what nobody reaches any more; it is started again like what died."""
    gone = state.cut_off()
    for name in (*STOP_ORDER, POSTGRES):
        if name in gone:
            note(f"Restarting {name}: its socket is gone.")
            state = _stopped(folder, state, name)
    return state


def _stopped(folder: DataFolder, state: StackState, name: str) -> StackState:
    """Stops a process and returns, and writes, the state without it."""
    _stop_process(name, state.processes[name])
    state = _without(state, name)
    write_state(folder.state, state)
    return state


def _moved(before: StackState, now: StackState) -> bool:
    """Tells whether a service that the indexer calls listens elsewhere than before."""
    return any(
        name in before.processes and before.processes[name].address != now.processes[name].address
        for name in ("io", "embed")
    )


def _stop_process(name: str, state: ProcessState) -> None:
    if name == POSTGRES:
        from services.cli.postgres import terminate_fast

        terminate_fast(state.process)
        return
    import signal

    from services.cli.processes import terminate

    terminate(state.process, signal.SIGTERM, _STOP_GRACE_SECONDS)


def _with(state: StackState, name: str, process: ProcessState) -> StackState:
    return replace(state, processes={**state.processes, name: process})


def _without(state: StackState, name: str) -> StackState:
    left = {other: process for other, process in state.processes.items() if other != name}
    return replace(state, processes=left, ready=False)
