"""A start either ends with everything serving, or with one clear line and nothing left running."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.runtime.exits import ExitCode
from tests.support.stack import Lodestone, finish, lodestone

if TYPE_CHECKING:
    from collections.abc import Iterator

_CANNOT_START = (
    ("EMBED_MODEL", "no-such-model", ExitCode.MODEL),
    ("DATABASE_URL", "postgresql://nobody:x@127.0.0.1:1/none", ExitCode.UNAVAILABLE),
    ("INDEXER_LEASE_SECONDS", "soon", ExitCode.USAGE),
    ("IO_ROOTS", "here=..", ExitCode.USAGE),
    ("IO_LISTEN", "0.0.0.0:7301", ExitCode.USAGE),
    ("ACCEPTED_TOKENS_FILE", "/nowhere", ExitCode.USAGE),
    ("TLS_CA_FILE", "/nowhere", ExitCode.USAGE),
)


@pytest.fixture
def stopped() -> Iterator[Lodestone]:
    """A product over an empty data folder, with nothing running."""
    yield from lodestone(EMBED_MODEL="hashing")


def _assert_one_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, stderr
    return lines[0]


def test_up_and_down_are_idempotent(stopped: Lodestone) -> None:
    first = stopped.run("up", "--json")
    second = stopped.run("up", "--json")

    assert first.code == second.code == 0, first.stderr
    assert first.json["serving"]
    assert first.json["model"]["name"] == "hashing"
    assert second.json["processes"] == first.json["processes"]
    stopped_now = stopped.run("down", "--json").json["stopped"]
    assert stopped_now == ["indexer", "embed", "io", "postgres"]
    assert stopped.run("down", "--json").json["stopped"] == []
    assert stopped.run("status").code == ExitCode.UNAVAILABLE


def test_two_commands_at_once_start_one_of_each(stopped: Lodestone) -> None:
    commands = [stopped.start("up", "--json") for _ in range(3)]

    done = [finish(command) for command in commands]

    assert [each.code for each in done] == [0, 0, 0], done
    pids = [
        {name: process["pid"] for name, process in each.json["processes"].items()} for each in done
    ]
    assert pids[0] == pids[1] == pids[2]


def test_what_lost_its_socket_is_started_again(stopped: Lodestone, flask: Path) -> None:
    """As of `/tmp` that is cleaned; red when whoever runs is taken to be reachable."""
    assert stopped.run("up").code == 0
    before = stopped.state.processes
    Path(before["io"].address.removeprefix("unix:")).unlink()
    Path(before["postgres"].address, ".s.PGSQL.5432").unlink()

    report = stopped.index(flask)

    now = stopped.state.processes
    assert report["state"] == "succeeded"
    assert {name for name in now if now[name].process != before[name].process} == {
        "io",
        "postgres",
    }


def test_only_what_died_is_started_again(stopped: Lodestone) -> None:
    stopped.run("up")
    before = stopped.state.processes
    stopped.kill("embed")

    assert stopped.run("up").code == 0

    after = stopped.state.processes
    assert after["embed"].process != before["embed"].process
    for name in ("postgres", "io", "indexer"):
        assert after[name].process == before[name].process


def test_another_model_restarts_what_serves_it(stopped: Lodestone, flask: Path) -> None:
    first = stopped.index(flask)
    second = stopped.run("index", str(flask), "--json", "--model", "hashing:128")

    assert second.code == 0, second.stderr
    assert "Restarting the embed service" in second.stderr
    assert second.json["forwards"] >= first["forwards"]
    status = stopped.with_settings(EMBED_MODEL="hashing:128").run("status", "--json").json
    assert status["model"]["dimensions"] == 128


def test_a_service_that_moves_is_found_by_the_one_that_calls_it(
    stopped: Lodestone, flask: Path
) -> None:
    """The io service listens on a port at first, and after its death on its default socket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert stopped.with_settings(IO_LISTEN=address).run("up").code == 0
    assert stopped.state.processes["io"].address == address
    stopped.kill("embed")
    assert stopped.index(flask)["state"] == "succeeded"
    stopped.kill("io")

    report = stopped.index(flask, "--full")

    assert report["state"] == "succeeded"
    assert stopped.state.processes["io"].address.startswith("unix:")


def test_a_port_in_use_is_told(stopped: Lodestone) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        done = stopped.with_settings(IO_LISTEN=address).run("up")

    assert done.code == ExitCode.ADDRESS_IN_USE
    assert address in _assert_one_line(done.stderr)
    assert stopped.state.processes == {}


def test_an_unknown_model_is_told(stopped: Lodestone) -> None:
    done = stopped.with_settings(EMBED_MODEL="no-such-model").run("up")

    assert done.code == ExitCode.MODEL
    assert "no-such-model" in _assert_one_line(done.stderr)
    assert stopped.state.processes == {}


def test_services_that_serve_are_not_stopped_for_settings_that_cannot_start(
    stopped: Lodestone,
) -> None:
    """Red when what is outdated is stopped first: a typing error would end a good service."""
    assert stopped.run("up").code == 0
    before = stopped.state.processes

    for setting, value, code in _CANNOT_START:
        done = stopped.with_settings(**{setting: value}).run("up", timeout_seconds=60)

        assert done.code == code, done
        _assert_one_line(done.stderr)
        assert stopped.state.processes == before
    assert stopped.run("status").code == 0


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nobody:secret-word@127.0.0.1:1/none",
        "postgresql://nobody:secret-word@no-such-host.invalid/none",
        "not a url",
    ],
)
def test_a_wrong_database_url_is_told_without_its_password(stopped: Lodestone, url: str) -> None:
    done = stopped.with_settings(DATABASE_URL=url).run("up", timeout_seconds=60)

    assert done.code in {ExitCode.UNAVAILABLE, ExitCode.USAGE}, done
    assert "secret-word" not in _assert_one_line(done.stderr)
    assert stopped.state.processes == {}
    assert not stopped.folder.postgres.exists()


def test_a_database_of_the_user_replaces_the_embedded_one(
    stopped: Lodestone, database_url: str, flask: Path
) -> None:
    product = stopped.with_settings(DATABASE_URL=database_url)

    report = product.index(flask)

    assert report["state"] == "succeeded"
    assert "postgres" not in product.state.processes
    assert not product.folder.postgres.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop the right to read everything")
def test_an_unreadable_file_is_listed_and_the_rest_is_indexed(
    stopped: Lodestone, flask: Path
) -> None:
    stopped.run("up")
    stopped.kill("io")
    (flask / "helpers.py").chmod(0)
    os.chown(flask / "helpers.py", 1, 1)
    as_user = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    restricted = Lodestone(stopped.root, stopped.settings, as_user)

    done = restricted.run("index", str(flask), "--json")

    assert done.code == ExitCode.OK, done
    assert done.json["files"]["failed"] == 1
    assert done.json["state"] == "succeeded_with_warnings"
    assert "helpers.py" in done.stderr
    assert product_finds(stopped, flask)


def test_a_long_path_of_the_data_folder_works(stopped: Lodestone) -> None:
    deep = Lodestone(stopped.root.parent / ("d" * 120) / "data", stopped.settings)
    try:
        assert deep.run("up").code == 0
        sockets = Path(deep.state.run)
    finally:
        assert deep.run("down").code == 0
    assert sockets != deep.root
    assert not sockets.exists()


def product_finds(product: Lodestone, flask: Path) -> bool:
    """Tells whether search finds something in another file."""
    return any(hit["path"] == "app.py" for hit in product.search("class Flask", flask, limit=50))


def test_a_misspelt_setting_is_refused_also_while_everything_runs(stopped: Lodestone) -> None:
    stopped.run("up")
    wrong = stopped.with_settings(EMBD_MODEL="hashing").run("up")
    assert wrong.code == ExitCode.USAGE
    assert "LODESTONE_EMBED_MODEL" in _assert_one_line(wrong.stderr)
