"""What a service listens on is checked before it listens."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from services.runtime import addresses
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "LODESTONE_IO_LISTEN"


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.7:1", "[2001:db8::1]:1"])
def test_an_address_that_others_can_reach_is_refused(address: str) -> None:
    with pytest.raises(StartError, match="can be reached from other machines") as caught:
        addresses.refuse_public(address, VARIABLE, lacks=["LODESTONE_TLS_CERT_FILE"])

    assert caught.value.code is ExitCode.USAGE
    assert caught.value.message.startswith(f"{VARIABLE}={address} ")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:s"]
)
def test_an_address_of_this_machine_alone_is_taken(address: str) -> None:
    addresses.refuse_public(address, VARIABLE, lacks=["LODESTONE_TLS_CERT_FILE"])


def test_a_free_port_and_a_free_socket_can_be_used(tmp_path: Path) -> None:
    addresses.refuse_unusable("127.0.0.1:0", VARIABLE)
    addresses.refuse_unusable(f"unix:{tmp_path}/s", VARIABLE)
    addresses.refuse_unusable(f"unix://{tmp_path}/s", VARIABLE)


def test_a_socket_that_somebody_serves_is_in_use(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        listener.listen()

        with pytest.raises(StartError, match="Address already in use") as caught:
            addresses.refuse_unusable(f"unix:{tmp_path}/s", VARIABLE)

    assert caught.value.code is ExitCode.ADDRESS_IN_USE


def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "s"
    precious.write_text("precious", encoding="utf-8")

    with pytest.raises(StartError, match="File exists"):
        addresses.refuse_unusable(f"unix:{precious}", VARIABLE)

    assert precious.read_text(encoding="utf-8") == "precious"


def test_a_missing_folder_and_a_long_path_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="does not exist"):
        addresses.refuse_unusable(f"unix:{tmp_path}/missing/s", VARIABLE)
    with pytest.raises(StartError, match="at most 107 bytes"):
        addresses.refuse_unusable(f"unix:{tmp_path}/{'s' * 107}", VARIABLE)
