"""`lodestone token`: what it prints once, what it keeps, and what it takes back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

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


@pytest.mark.parametrize("arguments", [("--scope", "all"), ("--days", "0")])
def test_options_are_held_to_their_choices(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run(tmp_path / "accepted.json", "new", "bot", *arguments)

    assert result.exit_code == 2
    assert "Invalid value" in result.stderr
