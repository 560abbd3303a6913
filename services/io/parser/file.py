"""One file: read, judged, parsed."""

from __future__ import annotations

import os
import time
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.io.content import file_digest
from services.io.errors import ContentChangedError
from services.io.model import (
    FileOutcome,
    ParsedFile,
    SkippedFile,
    SkipReason,
    UnchangedFile,
)
from services.io.parser.draft import NodeBuilder, TooManyNodesError
from services.io.parser.languages import MARKDOWN, RULES, TEXT, language_by_name
from services.io.parser.markdown import add_sections
from services.io.parser.outline import Outline
from services.io.parser.reference_rules import REFERENCE_RULES
from services.io.parser.references import collect_references
from services.io.parser.windows import add_windows
from services.io.reading import read_to_end
from services.io.signatures import signature_of

if TYPE_CHECKING:
    from tree_sitter import Node as Syntax

    from services.io.model import FileToParse, Reference, Signature
    from services.io.parser.grammars import Grammars
    from services.io.paths import Tree

BINARY_LOOK_BYTES = 8192
MAX_ERROR_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """What one file may have."""

    max_file_bytes: int
    max_nodes: int
    max_tokens: int


def parse_file(
    tree: Tree, file: FileToParse, limits: ParseLimits, grammars: Grammars
) -> FileOutcome:
    """Reads a file once and cuts it into nodes, unless it still has the known digest.

    Raises:
        FileError: the file cannot be read, or was written to while it was read.
    """
    fd, before = tree.open_file(file.path)
    try:
        if before.st_size > limits.max_file_bytes:
            return SkippedFile(SkipReason.TOO_LARGE, signature_of(before), b"")
        data = read_to_end(fd, before.st_size, limits.max_file_bytes)
        after = os.fstat(fd)
    finally:
        os.close(fd)
    if signature_of(before) != signature_of(after) or len(data) != after.st_size:
        raise ContentChangedError.at(file.path, "The file was written to while it was read.")
    signature = signature_of(after, read_at_ns=time.time_ns())
    digest = file_digest(data)
    if digest == file.known_digest:
        return UnchangedFile(signature)
    if is_binary(data):
        return SkippedFile(SkipReason.BINARY, signature, digest)
    language = language_by_name(file.path.rpartition("/")[2])
    return parse_bytes(data, language, limits, grammars, signature=signature, digest=digest)


def parse_bytes(
    data: bytes,
    language: str,
    limits: ParseLimits,
    grammars: Grammars,
    *,
    signature: Signature,
    digest: bytes,
) -> ParsedFile | SkippedFile:
    """Returns the nodes of a text; a file with more than `max_nodes` is taken as too large."""
    root = None
    try:
        builder, language, root = _nodes(data, language, limits, grammars)
    except TooManyNodesError:
        try:
            builder, language = _windows(data, limits), TEXT
        except TooManyNodesError:
            return SkippedFile(SkipReason.TOO_LARGE, signature, digest)
    references: tuple[Reference, ...] = ()
    if root is not None and language in REFERENCE_RULES:
        query, rules = grammars.references(language), REFERENCE_RULES[language]
        references = collect_references(data, root, query, rules, builder.nodes)
    return ParsedFile(
        digest=digest,
        signature=signature,
        language=language,
        nodes=tuple(builder.nodes),
        line_count=builder.line_count,
        has_syntax_errors=root is not None and root.has_error,
        references=references,
    )


def is_binary(data: bytes) -> bool:
    """Tells whether bytes are no UTF-8 text."""
    if b"\0" in data[:BINARY_LOOK_BYTES]:
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return True
    return False


def _nodes(
    data: bytes, language: str, limits: ParseLimits, grammars: Grammars
) -> tuple[NodeBuilder, str, Syntax | None]:
    """Returns the nodes, the language that they are of, and the syntax tree if there is one."""
    if not data.removeprefix(BOM_UTF8).strip():
        return NodeBuilder(data, limits.max_tokens, limits.max_nodes), language, None
    if language == MARKDOWN:
        builder = NodeBuilder(data, limits.max_tokens, limits.max_nodes)
        add_sections(builder)
        return builder, language, None
    rules = RULES.get(language)
    if rules is None:
        return _windows(data, limits), TEXT, None
    root = grammars.parser(language).parse(data).root_node
    if is_broken(root):
        return _windows(data, limits), TEXT, root
    builder = NodeBuilder(data, limits.max_tokens, limits.max_nodes)
    Outline(rules, builder).walk(root)
    return builder, language, root


def _windows(data: bytes, limits: ParseLimits) -> NodeBuilder:
    builder = NodeBuilder(data, limits.max_tokens, limits.max_nodes)
    add_windows(builder)
    return builder


def is_broken(root: Syntax) -> bool:
    """Tells whether the grammar made nothing of most of the file."""
    if root.is_error:
        return True
    if not root.has_error:
        return False
    size = sum(c.end_byte - c.start_byte for c in root.children if c.is_error)
    return size > MAX_ERROR_SHARE * (root.end_byte - root.start_byte)
