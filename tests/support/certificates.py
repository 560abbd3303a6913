"""Certificates for tests: an authority, and files signed by it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class CertificateFiles:
    """Files as the settings of a service name them."""

    certificate: Path
    key: Path
    authorities: Path

    def environment(self, *, require_client: bool = False) -> dict[str, str]:
        """Returns the settings."""
        return {
            "LODESTONE_TLS_CERT_FILE": str(self.certificate),
            "LODESTONE_TLS_KEY_FILE": str(self.key),
            "LODESTONE_TLS_CA_FILE": str(self.authorities),
            "LODESTONE_TLS_REQUIRE_CLIENT_CERT": str(require_client).lower(),
        }


def new_authority() -> trustme.CA:
    """Returns an authority that nobody else trusts."""
    return trustme.CA()


def write_certificates(
    folder: Path,
    authority: trustme.CA,
    *,
    valid_days: float = 1.0,
    names: Sequence[str] = ("localhost", "127.0.0.1"),
) -> CertificateFiles:
    """Writes a certificate for this machine and its key; a negative time makes it expired."""
    folder.mkdir(exist_ok=True)
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=valid_days)
    begin = end - dt.timedelta(days=30)
    issued = authority.issue_cert(*names, not_before=begin, not_after=end)
    files = CertificateFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(files.authorities))
    return files
