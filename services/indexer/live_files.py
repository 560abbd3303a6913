"""Whole files of a tree as they are now, through io, with the digest that proves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from lodestone.io.v1 import (
    scan_service_pb2,
    scan_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
)
from services.indexer.errors import (
    FileChangingError,
    FileGoneError,
    PayloadMismatchError,
    UnreadableFileError,
)
from services.indexer.model import Failure
from services.indexer.remote import files_failure, item_failure
from services.runtime.deadlines import seconds_at_most

if TYPE_CHECKING:
    from services.indexer.model import Tree

_MOST_TRIES = 3
_CHANGED = "ERROR_REASON_CONTENT_CHANGED"
_GONE = "ERROR_REASON_FILE_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class Bytes:
    """What a file is said to hold."""

    digest: bytes
    size: int


class LiveFiles:
    """Reads files; every call has a deadline."""

    def __init__(self, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        self._scan = scan_service_pb2_grpc.ScanServiceStub(channel)
        self._snippets = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def read(self, tree: Tree, path: str, known: Bytes) -> tuple[str, Bytes]:
        """Returns a file's text and what proves it: `known` when the file still holds that.

        Raises:
            FileGoneError: there is no such file any more.
            FileChangingError: it is written to all the time.
            UnreadableFileError: it may not be read, is too long, or is no UTF-8.
            TreeUnavailableError: its folder is not there, or may not be read.
            DependencyUnavailableError: io does not answer.
        """
        wanted = known
        for _ in range(_MOST_TRIES):
            found = await self._read(tree, path, wanted)
            if isinstance(found, str):
                return found, wanted
            if found.reason != _CHANGED:
                raise _error(found, path)
            wanted = await self._look(tree, path)
        raise FileChangingError(
            "The file is written to all the time: ask again.",
            metadata={"path": path},
            retry_after_seconds=1.0,
        )

    async def _read(self, tree: Tree, path: str, wanted: Bytes) -> str | Failure:
        ref = snippet_service_pb2.SnippetRef(
            path=path, start_byte=0, end_byte=wanted.size, file_digest=wanted.digest
        )
        request = snippet_service_pb2.ReadSnippetsRequest(tree=_tree(tree), refs=[ref])
        try:
            response = await self._snippets.ReadSnippets(
                request, timeout=seconds_at_most(self._timeout_seconds)
            )
        except grpc.aio.AioRpcError as error:
            return files_failure(error)
        if len(response.results) != 1:
            raise PayloadMismatchError("io answered with another number of snippets.")
        (result,) = response.results
        if result.WhichOneof("outcome") == "error":
            return item_failure(result.error)
        try:
            return str(result.content.decode())
        except UnicodeDecodeError:
            return Failure("ERROR_REASON_INVALID_UTF8", "The file is not valid UTF-8.")

    async def _look(self, tree: Tree, path: str) -> Bytes:
        """Returns what the file holds now."""
        request = scan_service_pb2.CheckFilesRequest(
            tree=_tree(tree), files=[scan_service_pb2.KnownFile(path=path)]
        )
        try:
            response = await self._scan.CheckFiles(
                request, timeout=seconds_at_most(self._timeout_seconds)
            )
        except grpc.aio.AioRpcError as error:
            raise _error(files_failure(error), path) from None
        if len(response.results) != 1:
            raise PayloadMismatchError("io answered with another number of files.")
        (result,) = response.results
        if result.verdict == result.VERDICT_GONE:
            raise _error(Failure(_GONE, "The file does not exist."), path)
        if result.verdict == result.VERDICT_UNKNOWN or not result.digest:
            raise _error(item_failure(result.error), path)
        return Bytes(result.digest, result.signature.size)


def _error(failure: Failure, path: str) -> Exception:
    if failure.reason == _GONE:
        return FileGoneError(
            "The file is gone since it was indexed: index again.", metadata={"path": path}
        )
    return UnreadableFileError(failure.message, metadata={"path": path})


def _tree(tree: Tree) -> tree_pb2.Tree:
    return tree_pb2.Tree(root=tree.root, directory=tree.directory)
