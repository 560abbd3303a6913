"""`lodestone doctor` against services with TLS at ports of this machine, as if forwarded."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from services.cli.__main__ import main
from services.cli.channels import TLS_CA_FILE
from services.cli.doctor_deployment import Deployment, deployment_checks
from services.runtime.exits import ExitCode
from tests.support.certificates import new_authority, write_certificates
from tests.unit.runtime.test_runtime_tls import free_port, serving

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_forwarded_service_is_asked_over_tls_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when loopback is always in the clear, and when the address is what is verified."""
    names = ("lodestone-embed", "lodestone-embed.lodestone.svc")
    files = write_certificates(tmp_path / "tls", new_authority(), names=names)
    address = f"127.0.0.1:{free_port()}"

    async def told(*options: str) -> tuple[bool, str]:
        await asyncio.to_thread(main, ["doctor", "--embed", address, *options, "--json"])
        last_line = capsys.readouterr().out.splitlines()[-1]  # the service logs as well
        checks = {each["name"]: each for each in json.loads(last_line)}
        return checks["embed"]["ok"], checks["embed"]["detail"]

    async with serving(address, **files.environment(require_client=True)):
        for name, value in files.environment().items():
            monkeypatch.setenv(name, value)
        in_the_clear = await told()
        forwarded = await told("--tls")
        longer_name = await told("--tls=lodestone-{service}.lodestone.svc")
        wrong_name = await told("--tls=lodestone-io")

    assert forwarded == longer_name == (True, f"serves at {address}")
    assert not in_the_clear[0]
    assert "a port that is forwarded to a service with TLS needs --tls" in in_the_clear[1]
    assert not wrong_name[0]
    assert "its certificate must name lodestone-io (--tls=NAME" in wrong_name[1]
    assert TLS_CA_FILE in wrong_name[1]


def test_a_forwarded_service_is_not_of_this_machine() -> None:
    """Red when limits of this machine are told of a service elsewhere."""
    here = {"io": "127.0.0.1:1"}

    assert "limits" in deployment_checks(Deployment(here))
    assert "limits" not in deployment_checks(Deployment(here, tls_name="lodestone-{service}"))
    assert "limits" in deployment_checks(Deployment({"io": "unix:/s"}, tls_name="any"))


def test_tls_without_who_signs_certificates_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when it is spoken in the clear then."""
    monkeypatch.delenv(TLS_CA_FILE, raising=False)

    assert main(["doctor", "--io", "127.0.0.1:1", "--tls"]) == ExitCode.USAGE
    assert "--tls needs LODESTONE_TLS_CA_FILE" in capsys.readouterr().err
