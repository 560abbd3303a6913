"""The files of TLS: what a process shows of itself, and whom it trusts."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from services.runtime.exits import ExitCode, StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.runtime.file_watch import FileWatch

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files hold."""

    certificate: bytes
    key: bytes
    authorities: bytes | None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a process finds its certificate, its key, and whom it trusts; all are PEM."""

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None
    """Certificates of those who sign the other side's."""

    require_client: bool = False
    """Whether a server lets in only clients that show a certificate signed by `authorities`."""

    @property
    def serves(self) -> bool:
        """Whether a server has what it needs for TLS."""
        return self.certificate is not None

    @property
    def connects(self) -> bool:
        """Whether channels are made with TLS."""
        return self.authorities is not None

    def paths(self) -> tuple[Path, ...]:
        """Returns those that are set."""
        return tuple(path for path in (self.certificate, self.key, self.authorities) if path)

    def read(self) -> TlsMaterial:
        """Returns what the files hold now.

        Raises:
            StartError: one cannot be read, or they do not belong together.
        """
        with _told(*self.paths()):
            certificate = self.certificate.read_bytes() if self.certificate else b""
            key = self.key.read_bytes() if self.key else b""
            authorities = self.authorities.read_bytes() if self.authorities else None
        self.server_context()
        return TlsMaterial(certificate, key, authorities)

    def server_context(self) -> ssl.SSLContext:
        """Returns a server's side of handshakes, made of what the files hold now.

        Raises:
            StartError: one cannot be read, or they do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.require_client:
            context.verify_mode = ssl.CERT_REQUIRED
        with _told(*self.paths()):
            if self.certificate and self.key:
                context.load_cert_chain(self.certificate, self.key)
            if self.authorities:
                context.load_verify_locations(self.authorities)
        return context


@contextmanager
def _told(*paths: Path) -> Iterator[None]:
    """Says of files that they cannot be read, or do not belong together."""
    names = ", ".join(map(str, paths))
    try:
        yield
    except ssl.SSLError as error:
        raise StartError(
            ExitCode.USAGE,
            f"The TLS files do not belong together or are no PEM ({error.reason}): {names}.",
        ) from None
    except OSError as error:
        raise StartError(
            ExitCode.USAGE,
            f"The TLS file {error.filename or names} cannot be read: {error.strerror}.",
        ) from None


def reread(read: Callable[[], Read], watch: FileWatch) -> Read | None:
    """Returns what changed files hold, None when that cannot be used: somebody is told.

    The watch has them tried again.
    """
    try:
        found = read()
    except StartError as error:
        if watch.failed(error.message):
            get_logger().error("certificates_not_reloaded", reason=error.message)
        return None
    get_logger().info("certificates_reloaded")
    return found
