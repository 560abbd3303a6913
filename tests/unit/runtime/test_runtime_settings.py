"""Settings come from the environment, and what is wrong with them is said by name."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.exits import ExitCode, StartError
from services.runtime.settings import Listed, Names, ServiceSettings, load_settings, names_of

LISTEN = {"LODESTONE_IO_LISTEN": "127.0.0.1:7701"}


class IoLike(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="LODESTONE_IO_", frozen=True, extra="ignore")

    workers: Annotated[int, Field(ge=1, le=64)] = 2
    token: Annotated[str, Field(max_length=8)] = ""
    names: Names = ()
    sizes: Listed[int] = ()


def _refused(**environment: str) -> str:
    with pytest.raises(StartError) as caught:
        load_settings(IoLike, {**LISTEN, **environment})
    assert caught.value.code is ExitCode.USAGE
    return caught.value.message


def test_values_come_from_the_environment_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LODESTONE_IO_WORKERS", "3")

    given = load_settings(IoLike, {**LISTEN, "LODESTONE_IO_DRAIN_SECONDS": "2.5"})

    assert (given.listen, given.drain_seconds, given.workers) == ("127.0.0.1:7701", 2.5, 2)


def test_lists_are_written_with_commas_whatever_their_items_are() -> None:
    given = load_settings(
        IoLike, {**LISTEN, "LODESTONE_IO_NAMES": " a, b ,,c", "LODESTONE_IO_SIZES": "64,128"}
    )

    assert (given.names, given.sizes) == (("a", "b", "c"), (64, 128))
    assert "LODESTONE_IO_SIZES" in _refused(LODESTONE_IO_SIZES="64,many")


def test_values_come_from_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LODESTONE_IO_LISTEN", "unix:s")
    monkeypatch.setenv("LODESTONE_IO_WORKERS", "3")
    monkeypatch.setenv("LODESTONE_LOG_LEVEL", "debug")

    settings = load_settings(IoLike)

    assert (settings.listen, settings.workers, settings.log_level) == ("unix:s", 3, "debug")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("LODESTONE_IO_WORKER", "LODESTONE_IO_WORKERS"),
        ("LODESTONE_I0_WORKERS", "LODESTONE_IO_WORKERS"),
        ("LODESTONE_EMBD_LISTEN", "LODESTONE_EMBED_LISTEN"),
        ("LODESTONE_LOGLEVEL", "LODESTONE_LOG_LEVEL"),
        ("lodestone_io_workers", "LODESTONE_IO_WORKERS"),
    ],
)
def test_an_unknown_name_suggests_the_right_one(wrong: str, right: str) -> None:
    assert _refused(**{wrong: "4"}) == f"Unknown setting {wrong}. Did you mean {right}?"


def test_a_name_like_nothing_is_refused_without_a_guess() -> None:
    assert _refused(LODESTONE_ZZZZZZZZZZZZ="1") == "Unknown setting LODESTONE_ZZZZZZZZZZZZ."


def test_names_of_other_services_and_shared_ones_are_let_through() -> None:
    others = {
        "LODESTONE_EMBED_ANYTHING": "1",
        "LODESTONE_INDEXER_LISTEN": "unix:s",
        "LODESTONE_DATA_DIR": "d",
        "PATH": "p",
    }

    assert load_settings(IoLike, {**LISTEN, **others}).workers == 2


def test_a_value_that_breaks_a_rule_names_variable_rule_and_value() -> None:
    message = _refused(LODESTONE_IO_WORKERS="many", LODESTONE_IO_DRAIN_SECONDS="0")

    assert "LODESTONE_IO_WORKERS: " in message
    assert "(it is 'many')" in message
    assert "LODESTONE_IO_DRAIN_SECONDS: Input should be greater than 0 (it is '0')" in message


def test_a_shared_variable_is_named_as_it_is_written() -> None:
    assert "LODESTONE_LOG_LEVEL: Input should be" in _refused(LODESTONE_LOG_LEVEL="loud")


def test_a_secret_is_not_repeated() -> None:
    message = _refused(LODESTONE_IO_TOKEN="correct horse battery")

    assert "LODESTONE_IO_TOKEN: String should have at most 8 characters" in message
    assert "horse" not in message


def test_a_missing_value_is_named() -> None:
    with pytest.raises(StartError, match="LODESTONE_IO_LISTEN is not set"):
        load_settings(IoLike, {})


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.0.0.1:65536", "127.0.0.1:\u0663", "999.0.0.1:1", "host:1", "unix:"],
)
def test_a_malformed_address_is_refused(address: str) -> None:
    assert "LODESTONE_IO_LISTEN: " in _refused(LODESTONE_IO_LISTEN=address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:7701", "localhost:7701", "unix:a/b"])
def test_a_well_formed_address_is_taken(address: str) -> None:
    assert load_settings(IoLike, {"LODESTONE_IO_LISTEN": address}).listen == address


def test_the_variables_of_a_service_are_listed() -> None:
    names = names_of(IoLike)

    assert {"LODESTONE_IO_LISTEN", "LODESTONE_IO_WORKERS", "LODESTONE_LOG_LEVEL"} <= set(names)


def test_every_setting_is_documented_by_a_bound_or_a_choice() -> None:
    """A number without a limit would be one that nobody thought of."""
    for name, field in ServiceSettings.model_fields.items():
        if field.annotation in {int, float}:
            assert field.metadata, name
