"""Between protobuf and the words of checks: which known files changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.io.v1 import scan_service_pb2, tree_pb2
from services.io.convert import signature_message
from services.io.errors import DOMAIN
from services.io.model import KnownFile, Signature
from services.runtime.status import status_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.io.model import CheckedFile


def known_files(request: scan_service_pb2.CheckFilesRequest) -> list[KnownFile]:
    """Returns the files of a request, as the caller knows them."""
    return [
        KnownFile(
            file.path,
            _signature(file.signature) if file.HasField("signature") else None,
            file.digest,
        )
        for file in request.files
    ]


def _signature(message: tree_pb2.FileSignature) -> Signature:
    return Signature(
        message.size, message.mtime_ns, message.ctime_ns, message.inode, message.settled
    )


def checks_message(results: Sequence[CheckedFile]) -> scan_service_pb2.CheckFilesResponse:
    """Returns what became of the files, in the same order."""
    return scan_service_pb2.CheckFilesResponse(results=[_result_message(r) for r in results])


def _result_message(result: CheckedFile) -> scan_service_pb2.CheckFileResult:
    return scan_service_pb2.CheckFileResult(
        verdict=scan_service_pb2.CheckFileResult.Verdict.Value(result.verdict.value),
        signature=None if result.signature is None else signature_message(result.signature),
        digest=result.digest,
        error=None if result.error is None else status_of(result.error, DOMAIN),
    )
