"""What a person sees: notes on standard error, and a spinner while something is waited for."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.status import Status

_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_QUIET_SECONDS = 0.4
_QUIET_LINE_SECONDS = 2.0
_REPEAT_SECONDS = 10.0


def note(text: str) -> None:
    """Prints one line on standard error."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Prints one warning on standard error."""
    click.secho(f"Warning: {text}", err=True, fg="yellow")


def harmless(text: str) -> str:
    """Returns a text without signs that a terminal obeys, such as those of colours and titles.

    Names of files hold any, and so do names that are taken from files, such as headings.
    """
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


class Waiting:
    """Says what is waited for: a spinner on a terminal, a line now and then elsewhere.

    Stays silent for waits that are over at once, and loads the drawing library only for others.
    """

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._text = ""
        self._told_at = 0.0
        self._status: Status | None = None

    def tell(self, text: str) -> None:
        """Says what is waited for now; may be called often."""
        now = time.monotonic()
        if now - self._begin < _QUIET_SECONDS:
            return
        changed = text != self._text
        if sys.stderr.isatty():
            self._spin(text)
        elif now - self._begin > _QUIET_LINE_SECONDS and (
            changed or now - self._told_at > _REPEAT_SECONDS
        ):
            note(f"{text} ...")
            self._text, self._told_at = text, now

    def close(self) -> None:
        """Removes the spinner."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _spin(self, text: str) -> None:
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status(text)
            self._status.start()
        self._status.update(f"{text} ... {time.monotonic() - self._begin:.0f} s")
