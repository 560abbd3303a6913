"""`lodestone token`: what it prints once, what it keeps, and what it takes back."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from services.cli import tokens
from services.cli.commands import cli
from services.runtime.errors import UnauthenticatedError
from services.runtime.exits import StartError
from services.runtime.tokens import AcceptedTokens

if TYPE_CHECKING:
    from pathlib import Path


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        cli, ["token", *arguments, "--file", str(path)], catch_exceptions=False
    )


def test_a_new_token_is_accepted_and_kept_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "accepted.json"

    made = run(path, "new", "ci-bot", "--scope", "read", "--scope", "run", "--workspace", "web-*")
    secret = made.stdout.strip()

    identity = AcceptedTokens(path).identify(f"Bearer {secret}")
    assert identity.name == "ci-bot"
    assert identity.scopes == {"read", "run"}
    assert identity.may_use("workspaces/web-shop")
    assert not identity.may_use("workspaces/shop")
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_token_is_rotated_by_two_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "accepted.json"
    old = json.loads(run(path, "new", "bot", "--json").stdout)
    new = json.loads(run(path, "new", "bot", "--days", "90", "--json").stdout)
    assert AcceptedTokens(path).identify(f"Bearer {old['token']}").name == "bot"

    run(path, "revoke", old["id"])

    assert AcceptedTokens(path).identify(f"Bearer {new['token']}").name == "bot"
    with pytest.raises(UnauthenticatedError):
        AcceptedTokens(path).identify(f"Bearer {old['token']}")
    listed = run(path, "list").stdout
    assert new["id"] in listed
    assert old["id"] not in listed
    assert "sha256" not in run(path, "list", "--json").stdout


@pytest.mark.parametrize(
    "arguments",
    [("new", "bad name"), ("new", "bot", "--workspace", "UPPER"), ("revoke", "x"), ("list",)],
)
def test_wrong_arguments_are_one_clear_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "accepted.json"

    with pytest.raises(StartError) as caught:
        run(path, *arguments)

    assert "\n" not in caught.value.message
    assert not path.exists()


@pytest.mark.parametrize(
    "arguments", [("--scope", "all"), ("--days", "0"), ("--days", "1e9"), ("--days", "nan")]
)
def test_options_are_held_to_their_choices(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run(tmp_path / "accepted.json", "new", "bot", *arguments)

    assert result.exit_code == 2
    assert "Invalid value" in result.stderr


def test_tokens_that_are_made_at_once_are_all_kept(tmp_path: Path) -> None:
    """Red when a command writes what it read before another one wrote."""
    path = tmp_path / "accepted.json"
    read = threading.Barrier(2)
    given = {"scopes": ("read",), "workspaces": ("*",), "roots": ("*",), "days": None}
    assert tokens.new.callback is not None
    made = functools.partial(tokens.new.callback, path=path, as_json=True, **given)
    makers = [threading.Thread(target=made, kwargs={"name": f"bot-{n}"}) for n in range(2)]
    looked = tokens._read

    def slow_read(*arguments: Any, **options: Any) -> Any:
        found = looked(*arguments, **options)
        with contextlib.suppress(threading.BrokenBarrierError):
            read.wait(0.2)  # is over at once where both may read
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokens, "_read", slow_read)
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()

    assert {entry["name"] for entry in json.loads(path.read_text())["tokens"]} == {"bot-0", "bot-1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_file_stays_its_owners(tmp_path: Path) -> None:
    """Red when a new file takes its place as its writer's: the service cannot read it any more."""
    path = tmp_path / "accepted.json"
    run(path, "new", "bot")
    os.chown(path, 1234, 1235)
    path.chmod(0o640)

    run(path, "new", "other")

    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 1235, 0o640)


def test_a_link_stays_a_link_and_its_file_is_changed(tmp_path: Path) -> None:
    path, link = tmp_path / "accepted.json", tmp_path / "link.json"
    run(path, "new", "bot")
    link.symlink_to(path)

    run(link, "new", "other")

    assert link.is_symlink()
    assert "other" in path.read_text()


def test_a_file_that_cannot_be_written_stays_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "accepted.json"
    run(path, "new", "bot")
    before = path.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(StartError, match="cannot be written: File too large"):
            run(path, "new", "other")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
