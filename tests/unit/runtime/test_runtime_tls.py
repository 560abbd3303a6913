"""TLS: who is let in, and files that change under a service."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from lodestone.embed.v1 import embed_service_pb2 as embed_pb2
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from services.runtime.channel import connect
from services.runtime.exits import StartError
from services.runtime.server import ServiceRun
from services.runtime.settings import load_settings
from services.runtime.tls_files import TlsFiles
from services.runtime.tokens import new_token
from tests.support.certificates import CertificateFiles, new_authority, write_certificates
from tests.unit.runtime.running import eventually
from tests.unit.runtime.sample_service import SampleApp, SampleSettings
from tests.unit.runtime.test_runtime_access import entry, write_tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(address: str, **environment: str) -> AsyncIterator[SampleApp]:
    settings = load_settings(SampleSettings, {"LODESTONE_EMBED_LISTEN": address, **environment})
    app = SampleApp()
    run = ServiceRun(settings, app)
    task = asyncio.create_task(run.serve())
    await eventually(lambda: run.serving or task.done())
    if task.done():
        task.result()
    try:
        yield app
    finally:
        run.stop()
        await task


async def embed(channel: grpc.aio.Channel) -> None:
    request = embed_pb2.EmbedRequest(model="models/echo", texts=["a"])
    request.options.purpose = embed_pb2.PURPOSE_DOCUMENT
    await embed_grpc.EmbedServiceStub(channel).Embed(request, timeout=5)


def client(files: CertificateFiles, *, certificate: bool = True) -> TlsFiles:
    if certificate:
        return TlsFiles(files.certificate, files.key, files.authorities)
    return TlsFiles(authorities=files.authorities)


async def is_let_in(address: str, tls: TlsFiles | None) -> bool:
    async with connect(address, tls=tls) as channel:
        try:
            await embed(channel)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
    return True


async def test_a_client_is_let_in_over_tls_alone(tmp_path: Path) -> None:
    files = write_certificates(tmp_path / "tls", new_authority())
    address = f"127.0.0.1:{free_port()}"

    async with serving(address, **files.environment()):
        assert await is_let_in(address, client(files, certificate=False))
        assert not await is_let_in(address, None)


async def test_mutual_tls_refuses_none_rogue_and_expired_certificates(tmp_path: Path) -> None:
    authority = new_authority()
    files = write_certificates(tmp_path / "server", authority)
    friend = write_certificates(tmp_path / "friend", authority)
    expired = write_certificates(tmp_path / "expired", authority, valid_days=-1)
    rogue = write_certificates(tmp_path / "rogue", new_authority())
    address = f"127.0.0.1:{free_port()}"

    async with serving(address, **files.environment(require_client=True)):
        assert await is_let_in(address, client(friend))
        trusting_rogue = TlsFiles(rogue.certificate, rogue.key, files.authorities)
        strangers = (client(friend, certificate=False), client(expired), trusting_rogue)
        let_in = await asyncio.gather(*(is_let_in(address, each) for each in strangers))
        assert let_in == [False, False, False]  # at once: each tries for a second or two


async def test_a_server_that_is_not_trusted_gets_no_call(tmp_path: Path) -> None:
    files = write_certificates(tmp_path / "server", new_authority())
    other = write_certificates(tmp_path / "other", new_authority())
    address = f"127.0.0.1:{free_port()}"

    async with serving(address, **files.environment()) as app:
        assert not await is_let_in(address, client(other, certificate=False))
        assert "called" not in app.events


@pytest.mark.slow
async def test_new_certificates_and_authorities_count_without_a_restart(tmp_path: Path) -> None:
    first, second = new_authority(), new_authority()
    files = write_certificates(tmp_path / "server", first)
    mine = write_certificates(tmp_path / "client", first)
    address = f"127.0.0.1:{free_port()}"
    async with serving(address, **files.environment(require_client=True)):
        channel = connect(address, tls=client(mine))
        await embed(channel)

        write_certificates(tmp_path / "server", second)
        stranger = write_certificates(tmp_path / "late", first)
        await asyncio.sleep(1.2)  # files are looked at once a second
        assert not await is_let_in(address, client(stranger))
        await embed(channel)  # its connection stands
        write_certificates(tmp_path / "client", second)
        await asyncio.sleep(1.2)
        await embed(channel)
        assert await is_let_in(address, client(mine))
        await channel.close()


@pytest.mark.slow
async def test_a_key_that_does_not_fit_yet_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two files are never replaced at once: between the two, what was there goes on to count."""
    authority = new_authority()
    files = write_certificates(tmp_path / "server", authority)
    fresh = write_certificates(tmp_path / "fresh", authority)
    address = f"127.0.0.1:{free_port()}"
    async with serving(address, **files.environment()):
        files.certificate.write_bytes(fresh.certificate.read_bytes())
        await asyncio.sleep(1.2)
        assert await is_let_in(address, client(files, certificate=False))
        assert "certificates_not_reloaded" in capsys.readouterr().err
        files.key.write_bytes(fresh.key.read_bytes())
        await asyncio.sleep(1.2)
        assert await is_let_in(address, client(files, certificate=False))
        assert "certificates_reloaded" in capsys.readouterr().err


def test_files_that_do_not_belong_together_are_refused_at_the_start(tmp_path: Path) -> None:
    one = write_certificates(tmp_path / "one", new_authority())
    two = write_certificates(tmp_path / "two", new_authority())

    with pytest.raises(StartError, match="do not belong together"):
        TlsFiles(one.certificate, two.key, one.authorities).read()


async def test_other_machines_are_served_with_tls_and_tokens_alone(tmp_path: Path) -> None:
    files = write_certificates(tmp_path / "tls", new_authority())
    tokens = write_tokens(tmp_path / "accepted", entry(new_token()))
    everywhere = "0.0.0.0:0"

    with pytest.raises(StartError, match="LODESTONE_ACCEPTED_TOKENS_FILE"):
        async with serving(everywhere, **files.environment()):
            pass
    with pytest.raises(StartError, match="LODESTONE_TLS_CERT_FILE"):
        async with serving(everywhere, LODESTONE_ACCEPTED_TOKENS_FILE=str(tokens)):
            pass
    with pytest.raises(StartError, match="METRICS_LISTEN"):
        async with serving(f"unix:{tmp_path}/s", LODESTONE_EMBED_METRICS_LISTEN=everywhere):
            pass


async def test_probes_ask_for_health_in_the_clear_and_get_nothing_else(tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    files = write_certificates(tmp_path / "tls", new_authority())
    port = free_port()
    async with (
        serving(
            f"unix:{tmp_path}/s",
            LODESTONE_EMBED_HEALTH_LISTEN=f"127.0.0.1:{port}",
            **files.environment(require_client=True),
        ),
        connect(f"127.0.0.1:{port}") as channel,
    ):
        for name in ("", "liveness", "lodestone.embed.v1.EmbedService"):
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=name), timeout=5
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await embed(channel)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metrics_are_served_over_tls_too(tmp_path: Path) -> None:
    import ssl

    files = write_certificates(tmp_path / "tls", new_authority())
    port = free_port()
    context = ssl.create_default_context(cafile=str(files.authorities))
    async with serving(
        f"unix:{tmp_path}/s",
        LODESTONE_EMBED_METRICS_LISTEN=f"127.0.0.1:{port}",
        **files.environment(),
    ):

        def scrape() -> str:
            url = f"https://localhost:{port}/metrics"
            with urllib.request.urlopen(url, context=context, timeout=5) as answer:
                return str(answer.read().decode())

        assert "grpc_server_started_total" in await asyncio.to_thread(scrape)
