"""The words of the io service, free of protobuf and of grpc."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class SymlinkPolicy(StrEnum):
    """What happens at a symbolic link."""

    DENY = "deny"
    WITHIN_ROOT = "within_root"
    ACROSS_ROOTS = "across_roots"


class SkipReason(StrEnum):
    """Why a file is not indexed; values are those of `lodestone.io.v1.SkipReason`."""

    IGNORED = "SKIP_REASON_IGNORED"
    TOO_LARGE = "SKIP_REASON_TOO_LARGE"
    BINARY = "SKIP_REASON_BINARY"
    SECRET = "SKIP_REASON_SECRET"  # noqa: S105 - the name of a reason
    GENERATED = "SKIP_REASON_GENERATED"
    SYMLINK = "SKIP_REASON_SYMLINK"
    SPECIAL = "SKIP_REASON_SPECIAL"
    VCS = "SKIP_REASON_VCS"
    NAME = "SKIP_REASON_NAME"


class NodeKind(StrEnum):
    """What a node is; values are those of `lodestone.io.v1.NodeKind`."""

    MODULE = "NODE_KIND_MODULE"
    CLASS = "NODE_KIND_CLASS"
    FUNCTION = "NODE_KIND_FUNCTION"
    METHOD = "NODE_KIND_METHOD"
    BLOCK = "NODE_KIND_BLOCK"
    SECTION = "NODE_KIND_SECTION"
    WINDOW = "NODE_KIND_WINDOW"


ROOT_ID = re.compile(r"[a-z0-9-]{1,63}")


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that the server may touch."""

    id: str
    path: str
    symlink_policy: SymlinkPolicy
    read_only: bool = True


class Signature(NamedTuple):
    """What the file system says of a file; see `lodestone.io.v1.FileSignature`."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    settled: bool = False


class ScannedFile(NamedTuple):
    """A file that the scan found; a tuple, because a scan makes one for each file of the tree."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    language: str


@dataclass(frozen=True, slots=True)
class ScanWarning:
    """A place that could not be looked at: what lies beneath it is unknown, not gone."""

    path: str
    error: Exception
    is_directory: bool


@dataclass(frozen=True, slots=True)
class ScanSummary:
    """Counts of a finished scan."""

    files: int
    directories: int
    warnings: int
    skipped: dict[SkipReason, int]


@dataclass(frozen=True, slots=True)
class ScanBatch:
    """Some files in byte order of their paths; the last batch of a scan has the summary."""

    files: list[ScannedFile]
    warnings: list[ScanWarning]
    summary: ScanSummary | None = None


class Verdict(StrEnum):
    """Whether a file changed; values are those of `CheckFileResult.Verdict`."""

    UNCHANGED = "VERDICT_UNCHANGED"
    CHANGED = "VERDICT_CHANGED"
    GONE = "VERDICT_GONE"
    UNKNOWN = "VERDICT_UNKNOWN"


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file as a caller knows it; without signature and digest nothing is known but its path."""

    path: str
    signature: Signature | None = None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """What a known file turned out to be; the digest is empty when it was not read."""

    verdict: Verdict
    signature: Signature | None = None
    digest: bytes = b""
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class FileToParse:
    """A file of a parse call: its position in the request, path and the digest the caller knows."""

    index: int
    path: str
    known_digest: bytes = b""


class Span(NamedTuple):
    """Bytes `start` to `end` (exclusive) of a file."""

    start: int
    end: int


class Node(NamedTuple):
    """A piece of a file that is embedded; see `lodestone.io.v1.Node`.

    `parent` is the position of the parent among the file's nodes plus 1, or 0. `segments` is empty
    when the text is the range itself.
    """

    kind: NodeKind
    name: str
    parent: int
    start: int
    end: int
    start_line: int
    end_line: int
    segments: tuple[Span, ...]
    content_hash: bytes
    part: int
    part_count: int
    tokens: int


class ReferenceKind(StrEnum):
    """How a node refers to a name; values are those of `lodestone.io.v1.ReferenceKind`."""

    CALL = "REFERENCE_KIND_CALL"
    INHERIT = "REFERENCE_KIND_INHERIT"
    IMPORT = "REFERENCE_KIND_IMPORT"


class Reference(NamedTuple):
    """A name that a node refers to; see `lodestone.io.v1.Reference`.

    `node` is the position of the node among the file's plus 1. A tuple: large files have thousands.
    """

    node: int
    kind: ReferenceKind
    name: str
    qualifier: str
    alias: str
    line: int


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A file as nodes, in order of their first byte, and what these refer to, in their order."""

    digest: bytes
    signature: Signature
    language: str
    nodes: tuple[Node, ...]
    line_count: int
    has_syntax_errors: bool = False
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True, slots=True)
class UnchangedFile:
    """A file that still has the digest that the caller knows."""

    signature: Signature


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file whose bytes say that it is not to be indexed; the digest is empty if not read."""

    reason: SkipReason
    signature: Signature
    digest: bytes


FileOutcome = ParsedFile | UnchangedFile | SkippedFile


@dataclass(frozen=True, slots=True)
class SnippetRef:
    """A byte range and the digest of the file that the caller took it from."""

    path: str
    start: int
    end: int
    file_digest: bytes


@dataclass(frozen=True, slots=True)
class ContentRef:
    """The text of a node, named by its segments, and both hashes that it must have."""

    path: str
    segments: tuple[Span, ...]
    file_digest: bytes
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class NodeContent:
    """A text in its normal form, with the hash computed from what was read."""

    text: str
    content_hash: bytes
