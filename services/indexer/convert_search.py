"""Filters and hits as protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.indexer.v1 import search_service_pb2
from services.indexer.model import NodeKind
from services.indexer.search.globs import is_open, wildcards
from services.indexer.search.highlight import matched_ranges
from services.indexer.search.model import Freshness, SearchFilter
from services.indexer.search.terms import dotted
from services.runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from datetime import datetime

    from services.indexer.search.engine import FoundText

FRESHNESS = {
    Freshness.UNKNOWN: search_service_pb2.NodeHit.FRESHNESS_UNSPECIFIED,
    Freshness.FRESH: search_service_pb2.NodeHit.FRESHNESS_FRESH,
    Freshness.MOVED: search_service_pb2.NodeHit.FRESHNESS_MOVED,
    Freshness.CHANGED: search_service_pb2.NodeHit.FRESHNESS_CHANGED,
    Freshness.GONE: search_service_pb2.NodeHit.FRESHNESS_GONE,
}
_MOST_WILDCARDS = 2000
"""Of all globs of a filter: the database takes long for more."""


def filter_of(
    message: search_service_pb2.SearchFilter, changed_since: datetime | None = None
) -> SearchFilter:
    """Returns a filter, with the start of its run if it names one. Raises InvalidRequestError."""
    kinds = {kind.value for kind in NodeKind}
    if unknown := [kind for kind in message.kinds if kind not in kinds]:
        raise InvalidRequestError(
            f"There is no kind {unknown[0]!r}; kinds are {', '.join(sorted(kinds))}.",
            metadata={"filter.kinds": "unknown kind"},
        )
    if any(is_open(glob) for glob in message.paths):
        raise InvalidRequestError(
            "A glob of paths ends in an open escape: write a backslash as two.",
            metadata={"filter.paths": "open escape"},
        )
    if wildcards(message.paths) > _MOST_WILDCARDS:
        raise InvalidRequestError(
            f"The globs of paths have more than {_MOST_WILDCARDS:,} `*` and `?` together.",
            metadata={"filter.paths": "too many wildcards"},
        )
    return SearchFilter(
        languages=tuple(message.languages),
        kinds=tuple(message.kinds),
        paths=tuple(message.paths),
        symbols=tuple(each for name in message.symbols for each in (name, dotted(name))),
        changed_since=changed_since,
    )


def hit_to_proto(found: FoundText, query: str = "") -> search_service_pb2.NodeHit:
    """Returns a hit's message; without a text it was not asked for, or is not there any more.

    With a question, the ranges of the text that match it are told.
    """
    hit = found.hit
    ranges = matched_ranges(query, found.text) if query and found.text else []
    return search_service_pb2.NodeHit(
        workspace=f"workspaces/{hit.workspace_name}",
        node_id=hit.node_id,
        path=hit.path,
        kind=hit.kind.value,
        qualified_name=hit.qualified_name,
        language=hit.language,
        start_byte=hit.start_byte,
        end_byte=hit.end_byte,
        start_line=hit.start_line,
        end_line=hit.end_line,
        file_digest=hit.digest,
        score=hit.score,
        text=found.text or "",
        is_signature=found.is_signature,
        freshness=FRESHNESS[_freshness(found)],
        matches=[search_service_pb2.TextRange(start=start, end=end) for start, end in ranges],
    )


def _freshness(found: FoundText) -> Freshness:
    """Returns what is known of a hit; nothing where its text was not asked for."""
    if found.failure is not None:
        return Freshness.of(found.failure)
    return Freshness.UNKNOWN if found.text is None else Freshness.FRESH
