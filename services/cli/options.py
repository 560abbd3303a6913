"""Options that every command takes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli.folder import default_root

if TYPE_CHECKING:
    from collections.abc import Callable

_ELSEWHERE = "lodestone.elsewhere"


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that every command takes."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
    return data_folder(as_json(function))


def data_folder(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the option that names the data folder."""
    option = click.option(
        "--data-dir",
        "root",
        type=click.Path(path_type=Path),
        callback=_absolute,
        help="Folder that holds the index and everything else. "
        "Default: LODESTONE_DATA_DIR, else a folder of yours.",
    )
    return option(function)


@dataclass(slots=True)
class Elsewhere:
    """An indexer that is asked instead of the one of a data folder."""

    address: str = ""
    """Empty: none, a command asks that of its data folder."""
    tls_name: str = ""
    """As of `open_channel`."""


def elsewhere() -> Elsewhere:
    """Returns which indexer the command that runs now was told to ask."""
    context = click.get_current_context(silent=True)
    return context.meta.setdefault(_ELSEWHERE, Elsewhere()) if context else Elsewhere()


def common_elsewhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of `common`, and those that name an indexer elsewhere."""
    indexer = click.option(
        "--indexer",
        metavar="ADDRESS",
        expose_value=False,
        callback=_note_address,
        help="Ask an indexer elsewhere, and start nothing. LODESTONE_TLS_CA_FILE and "
        "LODESTONE_TOKEN_FILE say how to reach it.",
    )
    tls = click.option(
        "--tls",
        is_flag=False,
        flag_value="lodestone-indexer",
        metavar="[NAME]",
        expose_value=False,
        callback=_note_tls_name,
        help="Speak TLS to a port of this machine too, which `kubectl port-forward` opens; its "
        "certificate must be for lodestone-indexer, or for NAME.",
    )
    return indexer(tls(common(function)))


def _note_address(_context: click.Context, _option: click.Parameter, value: str | None) -> None:
    elsewhere().address = value or ""


def _note_tls_name(_context: click.Context, _option: click.Parameter, value: str | None) -> None:
    if value and not os.environ.get("LODESTONE_TLS_CA_FILE"):
        raise click.UsageError("--tls needs LODESTONE_TLS_CA_FILE.")
    elsewhere().tls_name = value or ""


class Quantity(click.FloatRange):
    """A number in a range; click itself lets `nan` pass, which is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As the base class says."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("It is no number.", param, ctx)
        return number


def given_once(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> str:
    """Returns the value of an option that is declared as one of many; empty when it is not given.

    Of several, click itself takes the last one without a word.
    """
    if len(values) > 1:
        raise click.BadParameter("It is given once at most.")
    if values and not values[0]:
        raise click.BadParameter("It is empty.")
    return values[0] if values else ""


def not_blank(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Returns a question as it is; one of blanks alone would find anything."""
    if value is not None and not value.strip():  # a shell that completes words has none
        raise click.BadParameter("It is empty.")
    return value


def _absolute(_context: click.Context, _option: click.Parameter, value: Path | None) -> Path:
    return value.absolute() if value is not None else default_root(os.environ)
