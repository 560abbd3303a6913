"""The io service, in the indexer's words."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc

from lodestone.io.v1 import (
    parse_service_pb2,
    parse_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
)
from services.indexer.errors import PayloadMismatchError, TreeUnavailableError
from services.indexer.model import (
    ClaimedNode,
    Failure,
    NodeKind,
    ParsedFile,
    ParsedNode,
    ParsedReference,
    ParseOutcome,
    ReferenceKind,
    ScanSummary,
    Signature,
    Tree,
)
from services.indexer.remote import (
    call_failure,
    files_failure,
    item_failure,
    raise_unavailable,
)
from services.runtime.deadlines import seconds_at_most
from services.runtime.errors import DependencyUnavailableError
from services.runtime.request_sizes import most_request_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from services.indexer.search.model import Hit

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_KINDS = {
    parse_service_pb2.NODE_KIND_MODULE: NodeKind.MODULE,
    parse_service_pb2.NODE_KIND_CLASS: NodeKind.CLASS,
    parse_service_pb2.NODE_KIND_FUNCTION: NodeKind.FUNCTION,
    parse_service_pb2.NODE_KIND_METHOD: NodeKind.METHOD,
    parse_service_pb2.NODE_KIND_BLOCK: NodeKind.BLOCK,
    parse_service_pb2.NODE_KIND_SECTION: NodeKind.SECTION,
    parse_service_pb2.NODE_KIND_WINDOW: NodeKind.WINDOW,
}
_REFERENCE_KINDS = {
    parse_service_pb2.REFERENCE_KIND_CALL: ReferenceKind.CALL,
    parse_service_pb2.REFERENCE_KIND_INHERIT: ReferenceKind.INHERIT,
    parse_service_pb2.REFERENCE_KIND_IMPORT: ReferenceKind.IMPORT,
}
_MOST_REFS = 1000
_READ_CONTENTS = "/lodestone.io.v1.SnippetService/ReadContents"
_HASH_BYTES = 32
_PROBE_SECONDS = 5.0
_MOST_PATH_BYTES = 2400
"""A row of an index of PostgreSQL has at most 2,704 bytes, some of which are for other columns."""

_TOO_LONG = Failure(
    "ERROR_REASON_FILE_UNREADABLE", f"The path has more than {_MOST_PATH_BYTES} bytes."
)


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A file that the scan found."""

    path: str
    signature: Signature


@dataclass(frozen=True, slots=True)
class ScanWarning:
    """A place that the scan could not look at; all beneath a folder is unknown, not gone."""

    path: str
    failure: Failure
    is_directory: bool


@dataclass(frozen=True, slots=True)
class ScanBatch:
    """A message of a scan; the last has the summary."""

    files: Sequence[ScannedFile]
    warnings: Sequence[ScanWarning]
    summary: ScanSummary | None


class IoClient:
    """Calls io; every call has a deadline."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        timeout_seconds: float,
        *,
        parse_seconds: float = 120.0,
        fetch_seconds: float = 30.0,
    ) -> None:
        self._scan = scan_service_pb2_grpc.ScanServiceStub(channel)
        self._parse = parse_service_pb2_grpc.ParseServiceStub(channel)
        self._snippets = snippet_service_pb2_grpc.SnippetServiceStub(channel)
        self._timeout_seconds = timeout_seconds
        self._parse_seconds = parse_seconds
        self._fetch_seconds = fetch_seconds

    async def probe(self) -> None:
        """Returns soon when io answers. Raises DependencyUnavailableError."""
        await self.recipe(min(_PROBE_SECONDS, self._timeout_seconds))

    async def recipe(self, timeout_seconds: float | None = None) -> str:
        """Returns the version of the rules by which io cuts files."""
        try:
            response = await self._parse.ListLanguages(
                parse_service_pb2.ListLanguagesRequest(page_size=1),
                timeout=timeout_seconds or self._timeout_seconds,
            )
        except grpc.aio.AioRpcError as error:
            raise_unavailable(error, "io")
            raise
        return str(response.recipe)

    async def scan(
        self, tree: Tree, exclude: Sequence[str], include: Sequence[str] = ()
    ) -> AsyncGenerator[ScanBatch]:
        """Yields the tree's files in byte order of their paths, all or those to include.

        Raises:
            TreeUnavailableError: the folder does not exist or may not be read.
            DependencyUnavailableError: io does not answer.
        """
        request = scan_service_pb2.ScanTreeRequest(
            tree=_tree(tree), exclude=exclude, include=include
        )
        responses = aiter(self._scan.ScanTree(request))
        try:
            while True:
                # A scan of a large tree may take long; it is alive as long as it sends.
                async with asyncio.timeout(self._timeout_seconds):
                    response = await anext(responses, None)
                if response is None:
                    return
                yield _scan_batch(response)
        except TimeoutError:
            raise DependencyUnavailableError(
                "The io service does not answer (a scan stands still).",
                metadata={"dependency": "io", "code": "DEADLINE_EXCEEDED"},
            ) from None
        except grpc.aio.AioRpcError as error:
            raise_unavailable(error, "io")
            failure = call_failure(error)
            raise TreeUnavailableError(f"The folder cannot be scanned: {failure.message}") from None

    async def require_tree(self, tree: Tree) -> None:
        """Returns when the folder is there: files that were not found before are gone, it is not.

        Raises:
            TreeUnavailableError: the folder does not exist or may not be read.
            DependencyUnavailableError: io does not answer.
        """
        request = scan_service_pb2.CheckFilesRequest(
            tree=_tree(tree), files=[scan_service_pb2.KnownFile(path="any")]
        )
        try:
            await self._scan.CheckFiles(request, timeout=self._timeout_seconds)
        except grpc.aio.AioRpcError as error:
            files_failure(error)

    async def parse(
        self, tree: Tree, files: Sequence[tuple[str, bytes]], max_tokens: int
    ) -> list[ParseOutcome]:
        """Returns an outcome per (path, known digest), in their order.

        Files of a call that fails as a whole are asked for in several.

        Raises:
            TreeUnavailableError: the folder does not exist or may not be read.
            DependencyUnavailableError: io does not answer.
            PayloadMismatchError: io answered for other files than it was asked for.
        """
        request = parse_service_pb2.ParseFilesRequest(
            tree=_tree(tree),
            files=[
                parse_service_pb2.FileToParse(path=path, known_digest=digest)
                for path, digest in files
            ],
            max_tokens=max_tokens,
        )
        outcomes: dict[int, ParseOutcome] = {}
        try:
            async for response in self._parse.ParseFiles(
                request, timeout=seconds_at_most(self._parse_seconds)
            ):
                if response.index >= len(files) or response.index in outcomes:
                    raise PayloadMismatchError("io answered for a file that was not asked for.")
                outcomes[response.index] = _parse_outcome(files[response.index][0], response)
        except grpc.aio.AioRpcError as error:
            failure = files_failure(error)
            if len(files) == 1:
                return [ParseOutcome(files[0][0], failure=failure)]
            # The one to blame stands alone in the end.
            return await _in_halves(lambda half: self.parse(tree, half, max_tokens), files)
        if len(outcomes) != len(files):
            raise PayloadMismatchError("io left files without an answer.")
        return [outcomes[index] for index in range(len(files))]

    async def read_contents(self, tree: Tree, nodes: Sequence[ClaimedNode]) -> list[str | Failure]:
        """Returns the text of each node, or why it cannot be had, in their order.

        Nodes of very many pieces are asked for in several requests, and so are those of a call
        that fails as a whole.

        Raises:
            TreeUnavailableError: the folder does not exist or may not be read.
            DependencyUnavailableError: io does not answer.
            PayloadMismatchError: a text is not the one that was asked for.
        """
        request = snippet_service_pb2.ReadContentsRequest(
            tree=_tree(tree), refs=[_content_ref(node) for node in nodes]
        )
        if len(nodes) > 1 and request.ByteSize() > most_request_bytes(_READ_CONTENTS):
            return await _in_halves(lambda half: self.read_contents(tree, half), nodes)
        try:
            response = await self._snippets.ReadContents(request, timeout=self._fetch_seconds)
        except grpc.aio.AioRpcError as error:
            failure = files_failure(error)
            if len(nodes) == 1:
                return [failure]
            return await _in_halves(lambda half: self.read_contents(tree, half), nodes)
        if len(response.results) != len(nodes):
            raise PayloadMismatchError("io answered with another number of texts.")
        texts: list[str | Failure] = []
        for node, result in zip(nodes, response.results, strict=True):
            if result.WhichOneof("outcome") == "error":
                texts.append(item_failure(result.error))
            elif result.content.content_hash != node.content_hash:
                raise PayloadMismatchError("io answered with another text than was asked for.")
            else:
                texts.append(result.content.text)
        return texts

    async def read_snippets(self, tree: Tree, hits: Sequence[Hit]) -> list[str | Failure]:
        """Returns the bytes of each hit's range as text, or why they are not there."""
        texts: list[str | Failure] = []
        for start in range(0, len(hits), _MOST_REFS):
            part = hits[start : start + _MOST_REFS]
            request = snippet_service_pb2.ReadSnippetsRequest(
                tree=_tree(tree),
                refs=[
                    snippet_service_pb2.SnippetRef(
                        path=hit.path,
                        start_byte=hit.start_byte,
                        end_byte=hit.end_byte,
                        file_digest=hit.digest,
                    )
                    for hit in part
                ],
            )
            try:
                response = await self._snippets.ReadSnippets(
                    request, timeout=seconds_at_most(self._timeout_seconds)
                )
            except grpc.aio.AioRpcError as error:
                texts += [_snippets_failure(error)] * len(part)
                continue
            if len(response.results) != len(part):
                raise PayloadMismatchError("io answered with another number of snippets.")
            for result in response.results:
                failed = result.WhichOneof("outcome") == "error"
                texts.append(item_failure(result.error) if failed else _decoded(result.content))
        return texts


async def _in_halves(
    ask: Callable[[Sequence[Item]], Awaitable[list[Answer]]], items: Sequence[Item]
) -> list[Answer]:
    """Returns an answer for each of several items, which are asked for in two calls."""
    half = len(items) // 2
    return [*await ask(items[:half]), *await ask(items[half:])]


def _snippets_failure(error: grpc.aio.AioRpcError) -> Failure:
    """Returns why snippets cannot be had; of a folder that is not there, nothing is known."""
    try:
        return files_failure(error)
    except TreeUnavailableError as unavailable:
        return Failure("ERROR_REASON_FILE_UNREADABLE", unavailable.message)


def _decoded(content: bytes) -> str | Failure:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return Failure("ERROR_REASON_INVALID_UTF8", "The text is not valid UTF-8.")


def _tree(tree: Tree) -> tree_pb2.Tree:
    return tree_pb2.Tree(root=tree.root, directory=tree.directory)


def _content_ref(node: ClaimedNode) -> snippet_service_pb2.ContentRef:
    ranges = node.ranges
    return snippet_service_pb2.ContentRef(
        path=node.path,
        file_digest=node.digest,
        content_hash=node.content_hash,
        segments=[
            parse_service_pb2.ByteRange(start_byte=ranges[i], end_byte=ranges[i + 1])
            for i in range(0, len(ranges), 2)
        ],
    )


def _scan_batch(response: scan_service_pb2.ScanTreeResponse) -> ScanBatch:
    summary = None
    if response.HasField("summary"):
        skipped = {
            scan_service_pb2.SkipReason.Name(item.reason): item.count
            for item in response.summary.skipped
            if item.count
        }
        summary = ScanSummary(files=response.summary.files, skipped=skipped)
    files = []
    warnings = [
        ScanWarning(item.path, item_failure(item.error), item.is_directory)
        for item in response.warnings
    ]
    for item in response.files:
        path = item.path
        if _is_too_long(path):
            warnings.append(ScanWarning(path, _TOO_LONG, is_directory=False))
        else:
            files.append(ScannedFile(path, _signature(item.signature)))
    return ScanBatch(files=files, warnings=warnings, summary=summary)


def _is_too_long(path: str) -> bool:
    return len(path) > _MOST_PATH_BYTES // 4 and len(path.encode()) > _MOST_PATH_BYTES


def _signature(message: tree_pb2.FileSignature) -> Signature:
    return Signature(
        size=message.size,
        mtime_ns=message.mtime_ns,
        ctime_ns=message.ctime_ns,
        inode=message.inode & ((1 << 63) - 1),
        settled=message.settled,
    )


def _parse_outcome(path: str, response: parse_service_pb2.ParseFilesResponse) -> ParseOutcome:
    match response.WhichOneof("outcome"):
        case "parsed":
            return ParseOutcome(path, parsed=_parsed_file(path, response.parsed))
        case "unchanged":
            return ParseOutcome(path, unchanged=_signature(response.unchanged.signature))
        case "skipped":
            skipped = ParsedFile(
                path=path,
                digest=response.skipped.digest or bytes(32),
                signature=_signature(response.skipped.signature),
                language="",
                line_count=0,
                has_syntax_errors=False,
                nodes=(),
                skip_reason=response.skipped.reason,
            )
            return ParseOutcome(path, parsed=skipped)
        case "error":
            return ParseOutcome(path, failure=item_failure(response.error))
        case _:
            raise PayloadMismatchError("io answered a file without an outcome.")


def _parsed_file(path: str, message: parse_service_pb2.ParsedFile) -> ParsedFile:
    if len(message.digest) != _HASH_BYTES:
        raise PayloadMismatchError("io told a digest of another size.")
    return ParsedFile(
        path=path,
        digest=message.digest,
        signature=_signature(message.signature),
        language=message.language,
        line_count=message.line_count,
        has_syntax_errors=message.has_syntax_errors,
        nodes=tuple(_node(node, place) for place, node in enumerate(message.nodes)),
        references=tuple(_reference(item, len(message.nodes)) for item in message.references),
    )


def _reference(message: parse_service_pb2.Reference, nodes: int) -> ParsedReference:
    if not 1 <= message.node <= nodes:
        raise PayloadMismatchError("io told a reference of a node that is not there.")
    if message.kind not in _REFERENCE_KINDS:
        raise PayloadMismatchError("io told a reference of no known kind.")
    return ParsedReference(
        node=message.node - 1,
        kind=_REFERENCE_KINDS[message.kind],
        name=_storable(message.name),
        qualifier=_storable(message.qualifier),
        alias=_storable(message.alias),
        line=message.line,
    )


def _storable(name: str) -> str:
    """Returns a name without what PostgreSQL cannot hold."""
    return name.replace("\0", "")


def _node(node: parse_service_pb2.Node, place: int) -> ParsedNode:
    """Returns a file's node; its parent, counted from one, stands before it."""
    if node.kind not in _KINDS:
        raise PayloadMismatchError("io told a node of no known kind.")
    if node.parent > place:
        raise PayloadMismatchError("io told a node before its parent.")
    if len(node.content_hash) != _HASH_BYTES:
        raise PayloadMismatchError("io told a content hash of another size.")
    pieces = [edge for piece in node.segments for edge in (piece.start_byte, piece.end_byte)]
    return ParsedNode(
        kind=_KINDS[node.kind],
        qualified_name=_storable(node.qualified_name),
        parent=node.parent - 1 if node.parent else None,
        start_byte=node.start_byte,
        end_byte=node.end_byte,
        start_line=node.start_line,
        end_line=node.end_line,
        segments=tuple(pieces) or None,
        content_hash=node.content_hash,
        part=node.part,
        part_count=node.part_count,
        token_estimate=node.token_estimate,
    )
