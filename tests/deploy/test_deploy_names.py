"""Certificates as the documentation asks for them are for every name by which callers call."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.certificates import CertificateFiles, new_authority, write_certificates
from tests.support.manifests import (
    K8S,
    OVERLAYS,
    environment_of,
    of_kind,
    rendered_overlay,
    services_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICES = ("io", "embed", "indexer")
_OPERATIONS = Path(__file__).parent.parent.parent / "docs" / "operations.md"
_NAME = re.compile(r"lodestone-io((?:\.[a-z]+)*)")


@pytest.mark.parametrize("service", SERVICES)
def test_callers_verify_the_names_that_certificates_are_to_have(
    service: str, tmp_path: Path
) -> None:
    """Red when the page asks for `lodestone-indexer` alone, and has callers use a longer name."""
    files = write_certificates(tmp_path, new_authority(), names=_documented(service))
    called = _called(service)

    assert called
    with _serving(files) as port:
        for name in called:
            assert _is_verified(name, port, files), name
        assert not _is_verified("lodestone-other", port, files)


def test_the_component_asks_for_the_same_names_as_the_page() -> None:
    """Red when the component tls names one of them alone."""
    text = (K8S / "components" / "tls" / "kustomization.yaml").read_text("utf-8")
    for name in _documented("io"):
        assert re.search(rf"[ ,]{re.escape(name)}[,;) ]", text), name


def _documented(service: str) -> list[str]:
    """Returns the names that a service's certificate is to have, as the page says it of io."""
    text = _OPERATIONS.read_text("utf-8")
    (names,) = re.findall(r"subjectAltName\)[^:]*:([^;]*);", text)
    return [f"lodestone-{service}{found[1]}" for found in _NAME.finditer(names)]


def _called(service: str) -> set[str]:
    """Returns the names in addresses of manifests and of the page, and those of Prometheus."""
    addresses = re.findall(r"dns:///([\w.-]+)", _OPERATIONS.read_text("utf-8"))
    for overlay in OVERLAYS:
        manifests = rendered_overlay(overlay)
        for _, pod in services_of(manifests):
            values = environment_of(pod).values()
            addresses += [
                found[1] for each in values if (found := re.match(r"dns:///([\w.-]+)", each))
            ]
        for monitor in of_kind(manifests, "PodMonitor").values():
            endpoints = monitor["spec"]["podMetricsEndpoints"]
            addresses += [each["tlsConfig"]["serverName"] for each in endpoints]
    return {name for name in addresses if name.split(".")[0] == f"lodestone-{service}"}


@contextmanager
def _serving(files: CertificateFiles) -> Iterator[int]:
    """A server without methods, with a certificate."""
    pair = files.key.read_bytes(), files.certificate.read_bytes()
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield int(port)
    server.stop(None).wait()


def _is_verified(name: str, port: int, files: CertificateFiles) -> bool:
    """Whether a caller of an address with the name gets as far as being told of no method."""
    credentials = grpc.ssl_channel_credentials(files.authorities.read_bytes())
    options = [("grpc.default_authority", name)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary("/lodestone.None/None", bytes)(b"", timeout=10)
        code = failed.value.code()
    assert code in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}
    return code is grpc.StatusCode.UNIMPLEMENTED
