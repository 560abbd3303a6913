"""Checks of the addresses that a process is told to listen on, before it does."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROBE_SECONDS = 1.0
_MAX_SOCKET_PATH_BYTES = 107


def is_local(address: str) -> bool:
    """Returns whether only this machine can reach an address, or all that a list of them means."""
    if address.startswith("unix:"):
        return True
    listed = address.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:///")
    return all(_is_loopback(_split(item)[0]) for item in listed.split(","))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name of some machine
        return False


def refuse_public(address: str, variable: str, *, lacks: Sequence[str]) -> None:
    """Raises StartError when other machines can reach an address and it lacks what guards it.

    `lacks` names the settings that are not set.
    """
    if lacks and not is_local(address):
        raise StartError(
            ExitCode.USAGE,
            f"{variable}={address} can be reached from other machines. Listen on 127.0.0.1 or a "
            f"Unix socket, or set {', '.join(lacks)}.",
        )


def refuse_clear_token(address: str) -> None:
    """Raises StartError when a token that is sent without TLS would leave this machine."""
    if not is_local(address):
        raise StartError(
            ExitCode.USAGE,
            f"The token for {address} would travel in the clear: set LODESTONE_TLS_CA_FILE.",
        )


def refuse_unusable(address: str, variable: str) -> None:
    """Raises StartError when the address cannot be listened on, and says why.

    gRPC would take a Unix socket away from the process that serves it, and tells no reason for a
    port that it does not get.
    """
    try:
        if address.startswith("unix:"):
            _probe_unix(address.removeprefix("unix:"), variable)
        else:
            _probe_tcp(*_split(address))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "unknown host"
        raise cannot_listen(address, variable, reason) from None


def cannot_listen(address: str, variable: str, reason: str) -> StartError:
    """Returns the error of an address that is not to be had."""
    return StartError(
        ExitCode.ADDRESS_IN_USE,
        f"Cannot listen on {address} ({reason}). "
        f"Stop what listens there, or set {variable} to another address.",
    )


def shown(address: str, port: int) -> str:
    """Returns the address for a log, with the port that was bound; no path of a socket."""
    return "unix" if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isdigit() else 0


def _probe_tcp(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _probe_unix(name: str, variable: str) -> None:
    path = Path("/" + name.lstrip("/") if name.startswith("//") else name)
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise StartError(
            ExitCode.USAGE,
            f"{variable}: the path of a Unix socket holds at most {_MAX_SOCKET_PATH_BYTES} bytes, "
            f"and {path} is longer. Choose a shorter one.",
        )
    if not path.parent.is_dir():
        raise StartError(
            ExitCode.USAGE, f"{variable}: the folder {path.parent} does not exist. Make it first."
        )
    if not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(errno.EEXIST, "")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return  # left behind by a process that died; its place can be taken
    raise OSError(errno.EADDRINUSE, "")
