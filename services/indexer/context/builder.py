"""Searches, reads what was found from the live files, and packs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.indexer.context.pack import Pack, Packer, Piece
from services.indexer.model import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.model import NodeId, Workspace
    from services.indexer.search.engine import FoundText, SearchEngine
    from services.indexer.search.model import Hit, SearchFilter
    from services.indexer.search.reranking import RerankOutcome

_READ_HITS = 16
"""Hits that are read at once: as long as there is room, and no more than a few too many."""

_MOST_BYTES = 256 * 1024
"""Longer nodes are left out: no prompt holds them."""

_INDENTATION_BYTES = 128


@dataclass(frozen=True, slots=True)
class Context:
    """A context with what was left out of it."""

    pack: Pack
    stale: int
    """Hits whose file does not hold them any more."""
    reranking: RerankOutcome


class ContextBuilder:
    """Builds contexts."""

    def __init__(self, engine: SearchEngine) -> None:
        self._engine = engine

    async def build(
        self,
        workspaces: Sequence[Workspace],
        query: str,
        only: SearchFilter,
        *,
        candidates: int,
        token_budget: int,
        allow_signatures: bool,
        rerank: bool | None = None,
    ) -> Context:
        """Returns the code that answers a question, within a budget of tokens.

        Args:
            workspaces: what is searched; where there are several, each piece tells its own.
            query: the question.
            only: what may be found.
            candidates: most hits that are looked at, best first.
            token_budget: most tokens, by the estimate of `context.tokens`.
            allow_signatures: whether a declaration without room is given as its head.
            rerank: whether the hits are reranked; None is as the settings say.

        Raises:
            StateConflictError: a workspace was never indexed, or they have different models.
        """
        found = await self._engine.trace(
            workspaces, query, only, rerank=rerank, at_least=candidates
        )
        hits = found.hits[:candidates]
        packer = Packer(token_budget, allow_signatures=allow_signatures)
        stale = 0
        short = [hit for hit in hits if hit.end_byte - hit.start_byte <= _MOST_BYTES]
        packer.leave_out(len(hits) - len(short))
        for start in range(0, len(short), _READ_HITS):
            for piece in await self._pieces(workspaces, short[start : start + _READ_HITS]):
                if piece is None:
                    stale += 1
                elif packer.is_full:
                    packer.leave_out(1)
                else:
                    packer.offer(piece)
            if packer.is_full:
                packer.leave_out(len(short[start + _READ_HITS :]))
                break
        return Context(packer.finish(), stale, found.reranked.outcome)

    async def _pieces(
        self, workspaces: Sequence[Workspace], hits: Sequence[Hit]
    ) -> list[Piece | None]:
        """Returns each hit's piece, in the order of the hits; None as `_read`."""
        pieces: dict[NodeId, Piece | None] = {}
        for workspace in workspaces:
            own = [hit for hit in hits if hit.workspace_name == workspace.name]
            for hit, piece in zip(own, await self._read(workspace, own), strict=True):
                if piece is not None and len(workspaces) > 1:
                    piece = replace(piece, label=workspace.name)  # noqa: PLW2901
                pieces[hit.node_id] = piece
        return [pieces[hit.node_id] for hit in hits]

    async def _read(self, workspace: Workspace, hits: Sequence[Hit]) -> list[Piece | None]:
        """Returns each hit's piece; None for one that its file does not hold any more.

        A piece begins with its line when blanks alone are before it: that is how code is quoted.
        """
        found = await self._engine.read(workspace, [_with_lead(hit) for hit in hits])
        cut = [
            hit
            for hit, text in zip(hits, found, strict=True)
            if isinstance(text.failure, Failure) and _may_cut_a_character(text.failure)
        ]
        exact = {each.hit.node_id: each for each in await self._engine.read(workspace, cut)}
        pieces: list[Piece | None] = []
        for hit, text in zip(hits, found, strict=True):
            pieces.append(_piece(hit, exact.get(hit.node_id, text)))
        return pieces


def _with_lead(hit: Hit) -> Hit:
    return hit._replace(start_byte=max(0, hit.start_byte - _INDENTATION_BYTES))


def _may_cut_a_character(failure: Failure) -> bool:
    return failure.reason == "ERROR_REASON_INVALID_UTF8"


def _piece(hit: Hit, found: FoundText) -> Piece | None:
    if found.text is None:
        return None
    lead_bytes = hit.start_byte - found.hit.start_byte
    data = found.text.encode()
    line = data[:lead_bytes].rpartition(b"\n")[2]
    starts_line = b"\n" in data[:lead_bytes] or found.hit.start_byte == 0
    blanks = len(line) if starts_line and not line.strip(b" \t") else 0
    return Piece(
        path=hit.path,
        language=hit.language,
        start_byte=hit.start_byte - blanks,
        start_line=hit.start_line,
        text=data[lead_bytes - blanks :].decode(),
        hits=(hit,),
    )
