"""Exit codes of every Lodestone process, and the error that carries one."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a process tells the one that started it."""

    OK = 0
    FAILED = 1
    """The work itself failed: a run ended failed, nothing was found where something must be."""
    USAGE = 2
    """Wrong arguments or settings."""
    UNAVAILABLE = 3
    """Something that is needed does not answer: a service, the database."""
    ADDRESS_IN_USE = 4
    DATA_FOLDER = 5
    """The data folder is locked, foreign, or of another version."""
    DISK_FULL = 6
    MODEL = 7
    """The model is unknown or does not load."""
    INTERRUPTED = 130


class StartError(Exception):
    """A process cannot start; the message says in one line what to do."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
