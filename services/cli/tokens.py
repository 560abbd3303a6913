"""`lodestone token`: makes, lists and takes back the tokens in a file that services accept."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.cli.files import write_atomic
from services.cli.options import Quantity
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from services.runtime.tokens import TokenEntry

ACCEPTED = "LODESTONE_ACCEPTED_TOKENS_FILE"
SCOPES = ("read", "write", "run", "admin")


@click.group()
def token() -> None:
    """Make, list and revoke the bearer tokens that services accept.

    They stand in the file that LODESTONE_ACCEPTED_TOKENS_FILE names: digests of the tokens, and
    what each may do. Services notice changes within a second or two.
    """


_FILE = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path),
    envvar=ACCEPTED,
    required=True,
    help=f"The file of accepted tokens. Default: {ACCEPTED}.",
)
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")


@token.command("new")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=("read",),
    show_default=True,
    help="What it may do. Repeatable.",
)
@click.option(
    "--workspace",
    "workspaces",
    multiple=True,
    default=("*",),
    help="Id of a workspace, or its beginning with a * behind. Repeatable. Default: all.",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    default=("*",),
    help="Id of a root of the io service, likewise. Repeatable. Default: all.",
)
@click.option("--days", type=Quantity(min=0, min_open=True), help="Days until it expires.")
@_FILE
@_AS_JSON
def new(
    *,
    name: str,
    scopes: Sequence[str],
    workspaces: Sequence[str],
    roots: Sequence[str],
    days: float | None,
    path: Path,
    as_json: bool,
) -> None:
    """Make a token for NAME and print it: it is kept nowhere else.

    To rotate a token make a second one of the same name, hand it out, then revoke the first.
    """
    from pydantic import ValidationError

    from services.runtime.tokens import TokenEntry, digest_of, new_token

    secret = new_token()
    try:
        end = datetime.now(UTC) + timedelta(days=days) if days is not None else None
    except OverflowError:
        raise click.BadParameter("No date is that far away.", param_hint="--days") from None
    try:
        made = TokenEntry.model_validate(
            {
                "id": secrets.token_hex(4),
                "name": name,
                "sha256": digest_of(secret),
                "scopes": scopes,
                "workspaces": workspaces,
                "roots": roots,
                "expires_at": end,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise StartError(
            ExitCode.USAGE, f"Wrong {first['loc'][0]}: {first['input']!r} ({first['msg']})."
        ) from None
    with _changing(path) as file:
        _write(file, [*_read(file, missing_ok=True), made])
    if as_json:
        click.echo(json.dumps({"id": made.id, "name": name, "token": secret}))
    else:
        click.echo(secret)
        click.echo(f"Token {made.id} of {name} is accepted from now on.", err=True)


@token.command("list")
@_FILE
@_AS_JSON
def list_tokens(*, path: Path, as_json: bool) -> None:
    """List the tokens, without what would let anybody use them."""
    found = [entry.model_dump(mode="json", exclude={"sha256"}) for entry in _read(path)]
    if as_json:
        click.echo(json.dumps(found))
        return
    for entry in found:
        until = f", until {entry['expires_at']}" if entry["expires_at"] else ""
        click.echo(
            f"{entry['id']}  {entry['name']}: {', '.join(entry['scopes'])}; workspaces "
            f"{', '.join(entry['workspaces']) or 'none'}; roots "
            f"{', '.join(entry['roots']) or 'none'}{until}"
        )


@token.command("revoke")
@click.argument("identifier", metavar="ID")
@_FILE
def revoke(*, identifier: str, path: Path) -> None:
    """Take the token ID back: calls with it are refused within a second or two."""
    with _changing(path) as file:
        entries = _read(file)
        left = [entry for entry in entries if entry.id != identifier]
        if len(left) == len(entries):
            raise StartError(
                ExitCode.USAGE,
                f"{path} holds no token {identifier}; `lodestone token list` shows all.",
            )
        _write(file, left)
    click.echo(f"Token {identifier} is not accepted any more.", err=True)


def _read(path: Path, *, missing_ok: bool = False) -> list[TokenEntry]:
    from services.runtime.tokens import read_token_list

    if missing_ok and not path.exists():
        return []
    return list(read_token_list(path).tokens)


@contextmanager
def _changing(path: Path) -> Iterator[Path]:
    """Yields the file itself, behind links, which no other command changes meanwhile.

    Of two that read it at once the later would undo what the earlier wrote, a revocation for one.
    """
    file = path.resolve()
    try:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _not_written(path, error) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(folder)


def _write(file: Path, entries: Sequence[TokenEntry]) -> None:
    """Replaces the file in one step, so that no service reads half of it."""
    document: dict[str, Any] = {
        "tokens": [entry.model_dump(mode="json", exclude_none=True) for entry in entries]
    }
    try:
        # A service of another account reads it on.
        like = file.stat() if file.exists() else None
        write_atomic(file, json.dumps(document, indent=1), like=like)
    except OSError as error:
        raise _not_written(file, error) from None


def _not_written(path: Path, error: OSError) -> StartError:
    return StartError(
        ExitCode.USAGE,
        f"The file of accepted tokens {path} cannot be written: {error.strerror}.",
    )
