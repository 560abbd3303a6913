"""The client: search, contexts, lines of files, the code graph, runs and status."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from lodestone.io.v1 import tree_pb2
from services.client import convert
from services.client.calls import full_name
from services.client.errors import InvalidCallError
from services.client.graph import GraphCalls
from services.client.model import (
    Context,
    FileLines,
    Filter,
    Hit,
    RunState,
    SearchPage,
    Status,
    Workspace,
)
from services.client.runs import RunCalls
from services.runtime.channel import connect
from services.runtime.exits import StartError
from services.runtime.tls_files import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULT_TIMEOUT_SECONDS = 30.0
_NEWEST_RUNS = 50
"""Runs in which what a workspace's status tells is looked for."""

_AT_REST = frozenset({RunState.QUEUED, RunState.PAUSED})
_ALL = Filter()


class Lodestone(RunCalls, GraphCalls):
    """A client of one indexer: `async with Lodestone.connect(address) as client`.

    Every call has a deadline, is safe to repeat, and is repeated with backoff, for a second or two,
    while the service does not answer. Calls raise `CallError`.
    """

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        workspace: str = "",
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        token_file: Path | None = None,
        ca_file: Path | None = None,
    ) -> Self:
        """Returns a client; it connects at its first call.

        Args:
            address: of the indexer, `unix:/path` or `host:port`; `lodestone status --json` has it.
            workspace: what calls are about that name none. Without it, the only one there is.
            timeout_seconds: deadline of each call.
            token_file: file with the token that calls show; it may change.
            ca_file: certificates, PEM, of those who sign the indexer's: set, calls use TLS.

        Raises:
            InvalidCallError: a file cannot be read, or the token would travel in the clear.
        """
        tls = TlsFiles(authorities=ca_file) if ca_file is not None else None
        try:
            channel = connect(address, service="client", tls=tls, token_file=token_file)
        except StartError as error:
            raise InvalidCallError(error.message, code="INVALID_ARGUMENT") from None
        return cls(channel, full_name(workspace) if workspace else "", timeout_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def search(
        self,
        query: str,
        *,
        workspace: str = "",
        other_workspaces: Sequence[str] = (),
        limit: int = 10,
        only: Filter = _ALL,
        with_text: bool = True,
        signatures: bool = False,
        verify: bool = False,
        rerank: bool | None = None,
        page_token: str = "",
    ) -> SearchPage:
        """Finds the code that is closest to a query, in words or code.

        Args:
            query: what to look for, at most 8 KiB.
            workspace: what is searched.
            other_workspaces: more that are searched with it; all were indexed by one model.
            limit: most hits of the page, up to 1000.
            only: what may be found.
            with_text: whether hits come with their text, read from the file and verified.
            signatures: whether that is the head of a declaration alone, where it has a body.
            verify: whether each hit is held against the live file; one that moved is found there.
            rerank: whether the first hits are reranked; None is as the server is set.
            page_token: from the previous page; the rest must be the same. Pages end with what the
                first one was wide enough for: 300 nodes of each arm, or its `limit` if larger.
        """
        request = search_pb2.SearchNodesRequest(
            parent=await self._parent(workspace),
            query=query,
            page_size=limit,
            page_token=page_token,
            filter=convert.filter_to_proto(only),
            with_text=with_text,
            signatures=signatures,
            verify=verify,
            other_parents=map(full_name, other_workspaces),
            rerank=rerank,
        )
        response = await self._call(self._searches.SearchNodes, request)
        hits = tuple(map(convert.hit_of, response.hits))
        return SearchPage(
            hits,
            response.next_page_token,
            response.index_run,
            convert.reranking_of(response.reranking),
        )

    async def context(
        self,
        query: str,
        *,
        workspace: str = "",
        other_workspaces: Sequence[str] = (),
        token_budget: int = 8000,
        allow_signatures: bool = True,
        only: Filter = _ALL,
        candidates: int = 50,
        rerank: bool | None = None,
    ) -> Context:
        """Returns code that answers a query, for a language model's prompt, within a budget.

        Args:
            query: what to look for.
            workspace: what is searched.
            other_workspaces: more that are searched with it; all were indexed by one model. Each
                piece of the text then begins with its workspace in brackets.
            token_budget: most tokens, by estimate: 1 to a million.
            allow_signatures: whether a declaration without room is given as its head.
            only: what may be found.
            candidates: most hits that are looked at, up to 1000.
            rerank: whether the first hits are reranked; None is as the server is set.
        """
        request = search_pb2.BuildContextRequest(
            search=search_pb2.SearchNodesRequest(
                parent=await self._parent(workspace),
                query=query,
                other_parents=map(full_name, other_workspaces),
                page_size=candidates,
                filter=convert.filter_to_proto(only),
                rerank=rerank,
            ),
            token_budget=token_budget,
            allow_signatures=allow_signatures,
        )
        return convert.context_of(await self._call(self._searches.BuildContext, request))

    async def read(
        self, path: str, start_line: int = 1, end_line: int = 0, *, workspace: str = ""
    ) -> FileLines:
        """Returns lines of an indexed file as it is now, at most 2000 and 256 KiB.

        Args:
            path: under the tree.
            start_line: the first, from 1.
            end_line: the last, inclusive; 0 is the end of the file.
            workspace: whose file it is.
        """
        request = search_pb2.ReadLinesRequest(
            parent=await self._parent(workspace),
            path=path,
            start_line=start_line,
            end_line=end_line,
        )
        return convert.lines_of(path, await self._call(self._searches.ReadLines, request))

    async def read_hit(self, hit: Hit) -> FileLines:
        """Returns the lines where a hit was when it was indexed, as the file is now."""
        return await self.read(hit.path, hit.start_line, hit.end_line, workspace=hit.workspace)

    async def create_workspace(
        self, workspace: str, root: str, directory: str, display_name: str = ""
    ) -> Workspace:
        """Returns the workspace of a folder beneath one of io's roots; makes it when needed."""
        request = workspaces_pb2.CreateWorkspaceRequest(
            workspace_id=workspace.removeprefix("workspaces/"),
            workspace=workspaces_pb2.Workspace(
                tree=tree_pb2.Tree(root=root, directory=directory), display_name=display_name
            ),
        )
        response = await self._call(self._workspaces.CreateWorkspace, request)
        return convert.workspace_of(response.workspace)

    async def status(self, workspace: str = "") -> Status:
        """Returns what the index of a workspace holds, and of when."""
        name = await self._parent(workspace)
        found, stats, runs = await asyncio.gather(
            self._call(
                self._workspaces.GetWorkspace, workspaces_pb2.GetWorkspaceRequest(name=name)
            ),
            self._call(
                self._workspaces.GetWorkspaceStats,
                workspaces_pb2.GetWorkspaceStatsRequest(name=name),
            ),
            self._call(
                self._runs.ListIndexRuns,
                runs_pb2.ListIndexRunsRequest(parent=name, page_size=_NEWEST_RUNS),
            ),
        )
        tree = convert.workspace_of(found.workspace)
        newest = list(map(convert.run_of, runs.index_runs))
        unfinished = [run for run in newest if not run.state.is_final]
        at_work = [run for run in unfinished if run.state not in _AT_REST]
        last = next((run for run in newest if run.state.is_final), None)
        if tree.last_run and (last is None or last.name != tree.last_run):
            last = await self.run(tree.last_run)
        return Status(
            workspace=tree,
            files=stats.files,
            nodes_pending=stats.nodes_pending + stats.nodes_processing,
            nodes_embedded=stats.nodes_embedded,
            nodes_failed=stats.nodes_failed,
            last_run=last,
            current_run=next(iter(at_work or unfinished), None),
        )
