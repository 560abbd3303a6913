"""Channels of the command line, with its token and TLS when it has them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from services.cli.caller import trace_headers
from services.cli.health import CHANNEL_OPTIONS
from services.runtime.addresses import is_local, refuse_clear_token
from services.runtime.exits import StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN_FILE = "LODESTONE_TOKEN_FILE"  # noqa: S105 - names a setting
TLS_CA_FILE = "LODESTONE_TLS_CA_FILE"
TLS_CERT_FILE = "LODESTONE_TLS_CERT_FILE"
TLS_KEY_FILE = "LODESTONE_TLS_KEY_FILE"


def open_channel(address: str, *, tls_name: str = "") -> grpc.Channel:
    """Returns a channel that shows the token in the file that `LODESTONE_TOKEN_FILE` names.

    Each call shows the one that is there then: a watch lasts longer than a token.
    Its calls belong to the trace of the command that opens it, if that has one. To another machine
    it speaks TLS when `LODESTONE_TLS_CA_FILE` names who signs certificates, and shows the
    certificate of `LODESTONE_TLS_CERT_FILE` and `LODESTONE_TLS_KEY_FILE` if it has one.

    Args:
        address: where a service listens.
        tls_name: whom the certificate must name where another machine's service listens at a port
            of this one, as by `kubectl port-forward`; TLS is then spoken there too.

    Raises:
        StartError: a file cannot be read, or a token would travel to another machine without TLS.
    """
    headers = trace_headers()
    token = os.environ.get(TOKEN_FILE, "")
    if token and not os.environ.get(TLS_CA_FILE):
        refuse_clear_token(address)
    added = _AddHeaders(headers, Path(token) if token else None)
    channel = _channel(address, tls_name)
    return grpc.intercept_channel(channel, added) if headers or token else channel


def is_forwarded(address: str, tls_name: str) -> bool:
    """Returns whether a port of this machine is said to be a service of another."""
    return bool(tls_name) and is_local(address) and not address.startswith("unix:")


def _channel(address: str, tls_name: str) -> grpc.Channel:
    names = (TLS_CERT_FILE, TLS_KEY_FILE, TLS_CA_FILE)
    certificate, key, authorities = (
        Path(value) if (value := os.environ.get(name)) else None for name in names
    )
    forwarded = is_forwarded(address, tls_name)
    if not authorities or (is_local(address) and not forwarded):
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    from services.runtime.tls import channel_credentials
    from services.runtime.tls_files import TlsFiles

    files = TlsFiles(authorities=authorities)
    if certificate and key:
        files = TlsFiles(certificate, key, authorities)
    credentials = channel_credentials(files)
    options = [("grpc.ssl_target_name_override", tls_name)] if forwarded else []
    return grpc.secure_channel(address, credentials, options=[*CHANNEL_OPTIONS, *options])


class _AddHeaders(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, headers: Sequence[tuple[str, str]], token_file: Path | None) -> None:
        self._headers = headers
        self._token_file = token_file
        self._token = () if token_file is None else _read_token(token_file)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_headers(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_headers(details), request)

    def _with_headers(self, details: Any) -> Any:
        if self._token_file is not None:
            with suppress(StartError):  # half written: the one before counts
                self._token = _read_token(self._token_file)
        metadata = [*(details.metadata or ()), *self._headers, *self._token]
        return details._replace(metadata=metadata)


def _read_token(path: Path) -> tuple[tuple[str, str], ...]:
    from services.runtime.tokens import OwnToken

    return (("authorization", OwnToken(path).header),)
