"""Settings: what the user sets wins, secrets go to one process, a change is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.environment import (
    changed_settings,
    check_listening,
    given_settings,
    service_environment,
)
from services.cli.folder import DataFolder
from services.cli.sockets import RunFolder
from services.cli.stack import Stack
from services.embed.settings import EmbedSettings
from services.indexer.settings import IndexerSettings
from services.io.settings import IoSettings
from services.runtime.exits import StartError

_FOLDER = DataFolder(Path("/data"))
_RUN = RunFolder(Path("/data"))


def test_a_setting_of_the_user_wins_over_the_default() -> None:
    given = {"LODESTONE_IO_LISTEN": "127.0.0.1:7001", "LODESTONE_IO_ROOTS": "src=/src"}

    environment = service_environment("io", _FOLDER, _RUN, given)

    assert environment["LODESTONE_IO_LISTEN"] == "127.0.0.1:7001"
    assert environment["LODESTONE_IO_ROOTS"] == "src=/src"


def test_the_indexer_finds_the_services_where_they_listen() -> None:
    given = {"LODESTONE_IO_LISTEN": "127.0.0.1:7001"}

    environment = service_environment("indexer", _FOLDER, _RUN, given, "postgresql://x")

    assert environment["LODESTONE_INDEXER_IO_ADDRESS"] == "127.0.0.1:7001"
    assert environment["LODESTONE_INDEXER_EMBED_ADDRESS"] == "unix:/data/run/embed.sock"


def test_spans_go_into_the_data_folder_unless_the_user_says_where() -> None:
    """Planted once: the user's empty folder taken for none."""
    off = {"LODESTONE_TRACES_FOLDER": ""}

    for name in ("io", "embed", "indexer"):
        default = service_environment(name, _FOLDER, _RUN, {})
        assert default["LODESTONE_TRACES_FOLDER"] == "/data/traces"
        assert service_environment(name, _FOLDER, _RUN, off)["LODESTONE_TRACES_FOLDER"] == ""
        assert given_settings(name, off)


def test_paths_are_those_of_the_folder_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services run in `/`: red when they are told a relative path, which leads nowhere there."""
    monkeypatch.chdir(tmp_path)
    Path("models/mine").mkdir(parents=True)
    paths = {
        str(field.validation_alias or f"{settings.model_config['env_prefix']}{name}".upper())
        for settings in (EmbedSettings, IndexerSettings, IoSettings)
        for name, field in settings.model_fields.items()
        if field.annotation in {Path, Path | None}
    } | {"LODESTONE_TRACES_FOLDER", "LODESTONE_IO_STATE_DIR"}
    given = {
        **dict.fromkeys(paths, "some/file"),
        "LODESTONE_EMBED_MODEL": "./models/mine",
        "LODESTONE_EMBED_EXTRA_MODELS": "one=models/mine,two=openai:models/mine,three=hashing",
        "LODESTONE_EMBED_RERANKER": "models",
        "LODESTONE_LOG_LEVEL": "some/file",
    }

    seen = dict(Stack(tmp_path, given)._environment)

    assert {name: seen.pop(name) for name in paths} == dict.fromkeys(
        paths, str(tmp_path / "some/file")
    )
    assert seen == {
        "LODESTONE_EMBED_MODEL": str(tmp_path / "models/mine"),
        "LODESTONE_EMBED_EXTRA_MODELS": f"one={tmp_path}/models/mine,two=openai:models/mine,"
        "three=hashing",
        "LODESTONE_EMBED_RERANKER": str(tmp_path / "models"),
        "LODESTONE_LOG_LEVEL": "some/file",
    }
    assert Stack(tmp_path, {"LODESTONE_EMBED_RERANKER": ""})._environment == {
        "LODESTONE_EMBED_RERANKER": ""
    }


@pytest.mark.parametrize(
    ("address", "certificate"),
    [("127.0.0.1:0", ""), ("127.0.0.1:7303", "/tls.crt"), ("0.0.0.0:7303", "/tls.crt")],
)
def test_an_address_that_the_command_cannot_ask_is_refused(address: str, certificate: str) -> None:
    """Red when it waits for three minutes for what will never answer it."""
    given = {"LODESTONE_INDEXER_LISTEN": address, "LODESTONE_TLS_CERT_FILE": certificate}

    with pytest.raises(StartError, match="LODESTONE_INDEXER_LISTEN"):
        check_listening(given)
    check_listening({**given, "LODESTONE_INDEXER_LISTEN": "unix:/run/indexer.sock"})


def test_only_the_indexer_learns_the_password() -> None:
    given = {"LODESTONE_DATABASE_URL": "postgresql://user:secret@/x"}

    for name in ("io", "embed"):
        assert "secret" not in str(service_environment(name, _FOLDER, _RUN, given))
    environment = service_environment("indexer", _FOLDER, _RUN, given, "postgresql://y")
    assert environment["LODESTONE_DATABASE_URL"] == "postgresql://y"


def test_a_changed_setting_is_noticed_and_an_unset_one_is_not() -> None:
    recorded = given_settings("embed", {"LODESTONE_EMBED_MODEL": "a"})

    assert changed_settings(recorded, given_settings("embed", {})) == []
    assert changed_settings(recorded, given_settings("embed", {"LODESTONE_EMBED_MODEL": "a"})) == []
    assert changed_settings(recorded, given_settings("embed", {"LODESTONE_EMBED_MODEL": "b"})) == [
        "LODESTONE_EMBED_MODEL"
    ]


def test_settings_of_others_do_not_restart_a_service() -> None:
    given = {"LODESTONE_EMBED_MODEL": "a", "LODESTONE_DATABASE_URL": "u", "HOME": "/"}

    assert given_settings("io", given) == {}


def test_the_state_file_learns_no_password() -> None:
    given = {"LODESTONE_DATABASE_URL": "postgresql://user:secret@/x"}

    assert "secret" not in str(given_settings("indexer", given))
