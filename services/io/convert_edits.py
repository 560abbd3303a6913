"""Between protobuf and the words of writing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

from lodestone.io.v1 import edit_service_pb2
from services.io.changes import (
    Durability,
    FileEdits,
    NewFile,
    Splice,
    WriteRequest,
    WrittenFile,
)
from services.io.convert import signature_message
from services.io.errors import DOMAIN
from services.runtime.status import status_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.io.changes import Outcome

_DURABILITIES = {
    edit_service_pb2.DURABILITY_UNSPECIFIED: Durability.STRONG,
    edit_service_pb2.DURABILITY_STRONG: Durability.STRONG,
    edit_service_pb2.DURABILITY_BEST_EFFORT: Durability.BEST_EFFORT,
}


def edits_request(request: edit_service_pb2.ApplyEditsRequest) -> WriteRequest:
    """Returns the edits of a request by file, in order of first appearance."""
    by_path: dict[str, list[Splice]] = {}
    for position, edit in enumerate(request.edits):
        ref = edit.ref
        splice = Splice(ref.start_byte, ref.end_byte, edit.replacement, ref.file_digest, position)
        by_path.setdefault(ref.path, []).append(splice)
    changes = tuple(FileEdits(path, tuple(splices)) for path, splices in by_path.items())
    return _request(request, changes)


def creation_request(request: edit_service_pb2.CreateFileRequest) -> WriteRequest:
    """Returns the one file of a request."""
    overwrite = request.if_exists == edit_service_pb2.CreateFileRequest.IF_EXISTS_OVERWRITE
    change = NewFile(request.path, request.content, overwrite, request.create_parents)
    return _request(request, (change,))


def _request(
    request: edit_service_pb2.ApplyEditsRequest | edit_service_pb2.CreateFileRequest,
    changes: tuple[FileEdits, ...] | tuple[NewFile, ...],
) -> WriteRequest:
    name = request.DESCRIPTOR.full_name.encode()
    return WriteRequest(
        request.request_id,
        blake3(name + b"\0" + request.SerializeToString(deterministic=True)).digest(),
        request.tree.root,
        request.tree.directory,
        changes,
        _DURABILITIES[request.durability],
        request.origin_id,
    )


def edits_message(
    request: WriteRequest, outcomes: Sequence[Outcome]
) -> edit_service_pb2.ApplyEditsResponse:
    """Returns how each file ended, in order of first appearance."""
    response = edit_service_pb2.ApplyEditsResponse()
    for change, outcome in zip(request.changes, outcomes, strict=True):
        if isinstance(outcome, WrittenFile):
            response.results.add(path=change.path, edited=_written_message(outcome))
        else:
            response.results.add(path=change.path, error=status_of(outcome, DOMAIN))
    return response


def creation_message(outcome: WrittenFile) -> edit_service_pb2.CreateFileResponse:
    """Returns the created file as a message."""
    return edit_service_pb2.CreateFileResponse(file=_written_message(outcome))


def _written_message(file: WrittenFile) -> edit_service_pb2.EditedFile:
    return edit_service_pb2.EditedFile(
        digest=file.digest,
        signature=signature_message(file.signature),
        size_delta=file.size_delta,
    )
