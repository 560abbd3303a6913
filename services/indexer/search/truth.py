"""Holds hits against the live files: still there, moved, changed or gone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.indexer.plan import match_nodes
from services.indexer.search.model import Freshness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from services.indexer.io_client import IoClient
    from services.indexer.model import NodeId, ParsedFile, StoredNode, Workspace
    from services.indexer.search.model import Hit
    from services.indexer.storage.truth import TruthStore
    from services.indexer.storage.workspaces import WorkspaceStore

FILES_AT_ONCE = 100
"""Changed files of one page that are cut by one call."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A hit, with the range at which the file holds it now if it does, and the text there."""

    hit: Hit
    freshness: Freshness
    text: str | None = None


class Truth:
    """Looks hits up in the files that they are of."""

    def __init__(self, store: TruthStore, workspaces: WorkspaceStore, io: IoClient) -> None:
        self._store = store
        self._workspaces = workspaces
        self._io = io

    async def verify(self, workspace: Workspace, hits: Sequence[Hit]) -> list[Verified]:
        """Returns hits in their order, each with what became of it.

        A hit whose file changed is looked for in it: the file is cut as a run would cut it, and a
        node of the same text is the same node.

        Raises:
            DependencyUnavailableError: io does not answer.
        """
        if not hits:
            return []
        read = await self._io.read_snippets(workspace.tree, hits)
        seen = {
            hit.node_id: Verified(hit, Freshness.of(text), text if isinstance(text, str) else None)
            for hit, text in zip(hits, read, strict=True)
        }
        changed: dict[str, list[Hit]] = defaultdict(list)
        for item in seen.values():
            if item.freshness is Freshness.CHANGED:
                changed[item.hit.path].append(item.hit)
        if changed and workspace.active_model_id is not None:
            model = await self._workspaces.model(workspace.active_model_id)
            ids = [hit.node_id for hits in changed.values() for hit in hits]
            stored = await self._store.twins(workspace.id, ids)
            paths = list(changed)
            for start in range(0, len(paths), FILES_AT_ONCE):
                part = {path: changed[path] for path in paths[start : start + FILES_AT_ONCE]}
                again = await self._look_for(workspace, model.max_tokens, part, stored)
                seen.update((item.hit.node_id, item) for item in again)
        return [seen[hit.node_id] for hit in hits]

    async def _look_for(
        self,
        workspace: Workspace,
        max_tokens: int,
        changed: Mapping[str, Sequence[Hit]],
        stored: Mapping[NodeId, Sequence[StoredNode]],
    ) -> list[Verified]:
        """Returns what became of hits, by file, whose file changed."""
        files = [(path, b"") for path in changed]
        found: list[Verified] = []
        for outcome in await self._io.parse(workspace.tree, files, max_tokens):
            hits = changed[outcome.path]
            if outcome.parsed is not None and outcome.parsed.skip_reason is None:
                found += _in_file(outcome.parsed, hits, stored)
            elif outcome.failure is not None and Freshness.of(outcome.failure) is Freshness.GONE:
                found += [Verified(hit, Freshness.GONE) for hit in hits]
            else:
                found += [Verified(hit, Freshness.CHANGED) for hit in hits]
        there = [
            place
            for place, item in enumerate(found)
            if item.freshness in {Freshness.FRESH, Freshness.MOVED}
        ]
        texts = await self._io.read_snippets(workspace.tree, [found[at].hit for at in there])
        for place, text in zip(there, texts, strict=True):
            if isinstance(text, str):
                found[place] = replace(found[place], text=text)
            else:
                # The file changed again since it was cut: nothing is known of it.
                found[place] = replace(found[place], freshness=Freshness.CHANGED)
        return found


def _in_file(
    parsed: ParsedFile, hits: Sequence[Hit], stored: Mapping[NodeId, Sequence[StoredNode]]
) -> list[Verified]:
    """Returns what a file holds of hits; equal texts are told apart by name, as a run does it.

    So all stored nodes of the hits' texts and names take part, also those that are no hits. A name
    that one of them keeps is no other text of a node that is gone.
    """
    known = next((stored[hit.node_id] for hit in hits if hit.node_id in stored), ())
    plan = match_nodes(parsed.nodes, known)
    places = {
        kept: node for kept, node in zip(plan.kept, parsed.nodes, strict=True) if kept is not None
    }
    changed = {
        (node.kind, node.qualified_name)
        for kept, node in zip(plan.kept, parsed.nodes, strict=True)
        if kept is None
    }
    found = []
    for hit in hits:
        node = places.get(hit.node_id)
        if node is None:
            is_changed = (hit.kind, hit.qualified_name) in changed
            found.append(Verified(hit, Freshness.CHANGED if is_changed else Freshness.GONE))
            continue
        now = hit._replace(
            digest=parsed.digest,
            qualified_name=node.qualified_name,
            start_byte=node.start_byte,
            end_byte=node.end_byte,
            start_line=node.start_line,
            end_line=node.end_line,
        )
        stays = (now.start_byte, now.end_byte) == (hit.start_byte, hit.end_byte)
        found.append(Verified(now, Freshness.FRESH if stays else Freshness.MOVED))
    return found
