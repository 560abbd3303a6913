"""The command's channel to services that speak TLS."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lodestone.embed.v1 import embed_service_pb2 as embed_pb2
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from services.cli import channels
from services.runtime import file_watch
from services.runtime.exits import StartError
from services.runtime.tokens import new_token
from tests.support.certificates import new_authority, write_certificates
from tests.unit.runtime.running import running
from tests.unit.runtime.test_runtime_access import entry, write_tokens
from tests.unit.runtime.test_runtime_tls import free_port, serving

if TYPE_CHECKING:
    from pathlib import Path


def _is_served(address: str) -> bool:
    with channels.open_channel(address, tls_name="localhost") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
    return True


async def test_a_certificate_is_shown_where_services_ask_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when only the authorities are read: with mutual TLS no command reached a service."""
    files = write_certificates(tmp_path / "tls", new_authority())
    address = f"127.0.0.1:{free_port()}"

    async def told(environment: dict[str, str]) -> bool:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        served = await asyncio.to_thread(_is_served, address)
        for name in environment:
            monkeypatch.delenv(name)
        return served

    async with serving(address, **files.environment(require_client=True)):
        assert await told(files.environment())
        assert not await told({channels.TLS_CA_FILE: str(files.authorities)})


async def test_each_call_shows_the_token_that_is_there_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when a command that lasts shows the token of its begin: a rotation ends it."""
    monkeypatch.setattr(file_watch, "_LOOK_SECONDS", 0.0)
    address = f"127.0.0.1:{free_port()}"
    own, tokens = tmp_path / "own", [new_token(), new_token()]
    own.write_text(tokens[0], "ascii")
    accepted = write_tokens(tmp_path / "accepted", entry(tokens[0]))
    monkeypatch.setenv(channels.TOKEN_FILE, str(own))
    request = embed_pb2.EmbedRequest(model="models/echo", texts=["a"])
    request.options.purpose = embed_pb2.PURPOSE_DOCUMENT
    async with running(address, accepted_tokens_file=str(accepted)):
        with channels.open_channel(address) as channel:
            stub = embed_grpc.EmbedServiceStub(channel)
            await asyncio.to_thread(stub.Embed, request, timeout=5)
            own.write_text(tokens[1], "ascii")
            write_tokens(accepted, entry(tokens[1]))

            await asyncio.to_thread(stub.Embed, request, timeout=5)
            own.write_text("", "ascii")  # as it is written anew
            await asyncio.to_thread(stub.Embed, request, timeout=5)


def test_a_token_travels_to_another_machine_over_tls_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when the command shows it to whoever answers at the address."""
    token = tmp_path / "token"
    token.write_text("secret", "utf-8")
    monkeypatch.setenv(channels.TOKEN_FILE, str(token))
    monkeypatch.delenv(channels.TLS_CA_FILE, raising=False)

    channels.open_channel("127.0.0.1:1").close()
    channels.open_channel(f"unix:{tmp_path}/s").close()
    with pytest.raises(StartError, match=r"far:1 would travel in the clear: set LODESTONE_TLS_CA"):
        channels.open_channel("far:1")
