"""What the documentation of operations names is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from deploy.reference import limits
from deploy.reference.settings import PAGE, page
from services.cli.commands import cli
from services.embed.settings import EmbedSettings
from services.indexer.settings import IndexerSettings
from services.io.settings import IoSettings
from services.runtime.settings import SHARED_NAMES, names_of

DOCS = Path(__file__).parent.parent.parent / "docs"
_PAGES = ("operations.md", "runbook.md", "security.md")


def test_the_page_of_settings_is_what_the_code_says() -> None:
    """Planted once: a default changed in the page."""
    assert PAGE.read_text("utf-8") == page(), "run `make docs`"


def test_the_page_of_limits_is_what_the_contracts_say() -> None:
    """Planted once: a bound of a contract changed."""
    assert limits.PAGE.read_text("utf-8") == limits.page(), "run `make docs`"


def test_every_field_of_a_request_has_its_limit_there() -> None:
    """Planted once: numbers that are free left out of `FREE`."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", limits.PAGE.read_text("utf-8"), re.MULTILINE)

    assert len(rows) > 100
    assert not [name for name, told in rows if not told]


def test_every_setting_stands_there_with_what_it_means() -> None:
    text = PAGE.read_text("utf-8")
    for settings in (IoSettings, EmbedSettings, IndexerSettings):
        for name in names_of(settings):
            assert re.search(rf"^\| `{name}` \| .* \| .* \| \S.+ \|$", text, re.MULTILINE), name


@pytest.mark.parametrize("name", _PAGES)
def test_settings_that_a_page_names_exist(name: str) -> None:
    """Planted once: LODESTONE_INDEXER_LEASE in the runbook."""
    known = set(SHARED_NAMES)
    for settings in (IoSettings, EmbedSettings, IndexerSettings):
        known |= set(names_of(settings))
    named = set(re.findall(r"LODESTONE_[A-Z_]+[A-Z]\b(?![*<_])", (DOCS / name).read_text("utf-8")))

    assert named <= known


@pytest.mark.parametrize("name", _PAGES)
def test_commands_that_a_page_names_exist(name: str) -> None:
    """Planted once: `lodestone queue unpause`."""
    for words in re.findall(r"`lodestone ([a-z -]+)", (DOCS / name).read_text("utf-8")):
        command: click.Command = cli
        for word in words.split():
            if not isinstance(command, click.Group) or word.startswith("-"):
                break
            assert word in command.commands, f"lodestone {words}"
            command = command.commands[word]


@pytest.mark.parametrize("name", _PAGES)
def test_files_that_a_page_links_or_names_exist(name: str) -> None:
    text = (DOCS / name).read_text("utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(r"`((?:deploy|tests)/[\w./-]+)`", text)

    assert all((DOCS / link).exists() for link in links)
    assert all((DOCS.parent / path).exists() for path in paths)
