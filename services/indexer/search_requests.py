"""What requests to search name: workspaces, and what may be found in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer import convert, convert_runs, convert_search
from services.runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from datetime import datetime

    from lodestone.indexer.v1 import search_service_pb2
    from services.indexer.ledger import RunLedger
    from services.indexer.model import Workspace
    from services.indexer.search.model import SearchFilter
    from services.indexer.storage.workspaces import WorkspaceStore


class SearchRequests:
    """Looks up what a request names."""

    def __init__(self, workspaces: WorkspaceStore, ledger: RunLedger) -> None:
        self._workspaces = workspaces
        self._ledger = ledger

    async def workspace(self, name: str) -> Workspace:
        """Returns the workspace of a resource name. Raises NotFoundError."""
        return await self._workspaces.get(convert.workspace_id_of(name))

    async def workspaces(self, search: search_service_pb2.SearchNodesRequest) -> list[Workspace]:
        """Returns the workspaces that are searched, that of `parent` first, each once."""
        names = dict.fromkeys([search.parent, *search.other_parents])
        return [await self.workspace(name) for name in names]

    async def filter_of(self, search: search_service_pb2.SearchNodesRequest) -> SearchFilter:
        """Returns what may be found. Raises InvalidRequestError, NotFoundError."""
        return convert_search.filter_of(search.filter, await self._changed_since(search))

    async def _changed_since(
        self, search: search_service_pb2.SearchNodesRequest
    ) -> datetime | None:
        """Returns when the run began that the filter names; it is one of `parent`."""
        if not search.filter.changed_since_index_run:
            return None
        name, run_id = convert_runs.run_id_of(search.filter.changed_since_index_run)
        if name != convert.workspace_id_of(search.parent):
            raise InvalidRequestError(
                "The run is not one of the workspace that is searched.",
                metadata={"filter.changed_since_index_run": "another workspace"},
            )
        run = await self._ledger.get(name, run_id)
        return run.started_at or run.created_at
