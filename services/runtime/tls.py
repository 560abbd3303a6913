"""gRPC's credentials from files, which may change while a process serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from services.runtime.file_watch import FileWatch
from services.runtime.tls_files import reread

if TYPE_CHECKING:
    from services.runtime.tls_files import TlsFiles, TlsMaterial


class ServerTls:
    """Credentials of a server that takes up changed files with the next handshake."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._watch = FileWatch(*files.paths())
        self._first = files.read()

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials; connections that stand keep what they began with."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(self._first),
            self._fetch,  # type: ignore[arg-type] # None is how it says that nothing changed
            self._files.require_client,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC for each handshake, in a thread of its own; None keeps what it has."""
        if not self._watch.changed():
            return None
        material = reread(self._files.read, self._watch)
        return self._configuration(material) if material is not None else None

    def _configuration(self, material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
        pair = (material.key, material.certificate)
        return grpc.ssl_server_certificate_configuration([pair], material.authorities)


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Returns credentials of a client; it shows its certificate when it has one.

    Raises:
        StartError: a file cannot be read.
    """
    material = files.read()
    pair = (material.key, material.certificate) if files.serves else (None, None)
    return grpc.ssl_channel_credentials(material.authorities, *pair)
