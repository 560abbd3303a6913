"""Tells of a process that is not there any more while a command needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.cli.logs import last_telling_line
from services.cli.state import POSTGRES
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from services.cli.folder import DataFolder
    from services.cli.state import StackState


def check_alive(folder: DataFolder, state: StackState, hint: str) -> None:
    """Raises StartError when a process that must run does not; the hint says what to do then."""
    for name in state.dead():
        what = "PostgreSQL" if name == POSTGRES else f"The {name} service"
        how = "was stopped"
        if known := state.processes.get(name):
            marks = (f"lodestone-{name}: ", "FATAL:")
            line = last_telling_line(folder.log(name), *marks, start=known.log_start)
            how = f"died (its last line: {line})"
        raise StartError(ExitCode.UNAVAILABLE, f"{what} {how}. {hint}")
