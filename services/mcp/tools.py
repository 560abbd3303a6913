"""The tools; their docstrings are what a language model reads of them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import PurePath
from typing import TYPE_CHECKING

from mcp.server.mcpserver import Context as ToolContext  # noqa: TC002 - looked up when it runs
from mcp.server.mcpserver.exceptions import ToolError

from services.client import CallError, Filter, RunState, StateConflictError, UnavailableError
from services.mcp import answers
from services.mcp.arguments import (  # noqa: TC001 - looked up when it runs
    EndLine,
    Folder,
    Globs,
    Kinds,
    Languages,
    Limit,
    OtherFolders,
    Path,
    Query,
    Signatures,
    StartLine,
    Symbols,
    TokenBudget,
    WaitSeconds,
)
from services.mcp.backend import BackendError, Place

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from services.client import Lodestone, Run
    from services.mcp.backend import Backend

_MOST_STATUSES = 50

_EMPTY = "empty"
"""State of a workspace that was never indexed, as the indexer tells it."""


class Tools:
    """The tools over one backend."""

    def __init__(self, backend: Backend, default_folder: str) -> None:
        self._backend = backend
        self._default_folder = default_folder

    async def search(
        self,
        query: Query,
        folder: Folder = "",
        limit: Limit = 8,
        paths: Globs = [],
        languages: Languages = [],
        kinds: Kinds = [],
        symbols: Symbols = [],
        signatures: Signatures = False,  # noqa: FBT002 - tools are called by name
        other_folders: OtherFolders = [],
    ) -> str:
        """Find code by meaning or by name. Returns the best hits with path, lines, name and code.

        Prefer this over text search when you do not know the exact words. The code that is shown is
        read from the files now; a hit whose file changed since it was indexed says so. With
        `other_folders` each hit begins with the name of its workspace in brackets, which `read`
        takes as its folder.
        """
        async with self._call() as client:
            place, others = await self._places(client, folder, other_folders)
            page = await client.search(
                query,
                workspace=place.workspace,
                other_workspaces=others,
                limit=limit,
                only=_filter(place, paths, languages, kinds, symbols),
                signatures=signatures,
            )
        return answers.search_text(page, [place.workspace, *others])

    async def context(
        self,
        query: Query,
        folder: Folder = "",
        token_budget: TokenBudget = 4000,
        paths: Globs = [],
        languages: Languages = [],
        other_folders: OtherFolders = [],
    ) -> str:
        """Gather the code that a question needs, within a budget of tokens.

        Like `search`, but it returns as much of the relevant code as fits: overlapping pieces
        merged, copies once, each with path and lines above it. Use it to understand how something
        works, and `search` to find where something is. With `other_folders` each place begins with
        the name of its workspace in brackets, which `read` takes as its folder.
        """
        async with self._call() as client:
            place, others = await self._places(client, folder, other_folders)
            found = await client.context(
                query,
                workspace=place.workspace,
                other_workspaces=others,
                token_budget=token_budget,
                only=_filter(place, paths, languages, [], []),
            )
        return answers.context_text(found)

    async def read(
        self,
        path: Path,
        start_line: StartLine = 1,
        end_line: EndLine = 0,
        folder: Folder = "",
    ) -> str:
        """Read lines of an indexed file as it is now, numbered.

        Tells whether the file was written since it was indexed. Files that are not indexed, such as
        those with secrets, cannot be read.
        """
        if end_line and end_line < start_line:
            raise ToolError(f"end_line {end_line} is before start_line {start_line}.")
        async with self._call() as client:
            place = await self._place(client, folder)
            lines = await client.read(path, start_line, end_line, workspace=place.workspace)
        return answers.lines_text(lines)

    async def status(self, folder: Folder = "") -> str:
        """Tell what is indexed: folders, number of files, age of the index, and what runs now.

        With a folder, of that alone; without, of all.
        """
        async with self._call() as client:
            known = await client.workspaces()
            if folder:
                place = await self._place(client, folder)
                known = [each for each in known if each.name == place.workspace]
            if not known:
                return "Nothing is indexed yet: call `index`."
            texts = [
                answers.status_text(await client.status(each.name), self._backend.folder_of(each))
                for each in known[:_MOST_STATUSES]
            ]
        return answers.workspaces_text(texts)

    async def index(
        self,
        context: ToolContext,
        folder: Folder = "",
        wait_seconds: WaitSeconds = 45,
    ) -> str:
        """Bring the index of a folder up to date after files changed. Only what changed costs time.

        Returns when it is done, or how far it is when the time to wait is over: `status` tells how
        it goes on. The first time takes minutes for a large folder.
        """
        async with self._call() as client:
            try:
                workspace = (await self._place(client, folder)).workspace
            except _NotIndexedError:
                new = self._backend.new_workspace(folder or self._default_folder)
                made = await client.create_workspace(
                    new.workspace, new.root, new.directory, new.display_name
                )
                workspace = made.name
            run = await client.start_index(workspace)
            if wait_seconds:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_seconds):
                        await _follow(client, run, context)
            run = await client.run(run.name)
        if run.state.is_final and not run.state.is_success:
            raise ToolError(f"{workspace}: {answers.run_text(run)}")
        done = "The index is up to date." if run.state.is_success else "It goes on: ask `status`."
        if run.state is RunState.PAUSED:
            done = f"It is paused. A person resumes it with: lodestone resume {run.name}"
        return f"{workspace}: {answers.run_text(run)} {done}"

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncGenerator[Lodestone]:
        """Yields a client; what goes wrong becomes a text that says what to do."""
        try:
            yield await self._backend.client()
        except (BackendError, _NotIndexedError) as error:
            raise ToolError(str(error)) from error
        except UnavailableError as error:
            raise ToolError(
                f"{error.message} Try again; `lodestone status` in a shell tells what runs."
            ) from error
        except CallError as error:
            if isinstance(error, StateConflictError) and error.metadata.get("state") == _EMPTY:
                raise ToolError(f"{error.message} Call `index` first.") from error
            fields = "; ".join(f"{name}: {text}" for name, text in error.metadata.items())
            raise ToolError(f"{error}{f' [{fields}]' if fields else ''}") from error

    async def _places(
        self, client: Lodestone, folder: str, other_folders: Sequence[str]
    ) -> tuple[Place, list[str]]:
        """Returns what is to be looked into, and the names of more workspaces."""
        place = await self._place(client, folder)
        others = [await self._place(client, other) for other in other_folders]
        for each in [place, *others] if others else []:
            if each.prefix:
                raise ToolError(
                    f"{each.prefix} is a folder inside {each.workspace}. Several are searched "
                    "as wholes: name the workspaces, and what to search in them by `paths`."
                )
        return place, [each.workspace for each in others]

    async def _place(self, client: Lodestone, folder: str) -> Place:
        """Returns what is to be looked into."""
        known = await client.workspaces()
        names = {each.name.removeprefix("workspaces/"): each.name for each in known}
        if folder.removeprefix("workspaces/") in names:
            return Place(names[folder.removeprefix("workspaces/")])
        asked = folder or self._default_folder
        place = self._backend.place_of(asked, known) if asked else None
        if place is None and not folder and len(known) == 1 and not self._default_folder:
            place = Place(known[0].name)
        if place is not None:
            return place
        if asked and not PurePath(asked).is_absolute():
            asked = f"{asked} is neither an absolute path nor the name of a workspace; it"
        listed = "; ".join(self._backend.folder_of(each) or each.name for each in known[:20])
        raise _NotIndexedError(
            f"{asked or 'No folder is named, and it'} is not indexed. Call `index` with it, or "
            f"name an indexed folder. Indexed are: {listed or 'none'}"
        )


class _NotIndexedError(Exception):
    """The folder belongs to no workspace."""


async def _follow(client: Lodestone, run: Run, context: ToolContext) -> None:
    """Follows a run to its end, and tells the caller how far it is."""
    async with contextlib.aclosing(client.watch(run.name)) as states:
        async for seen in states:
            done = seen.nodes_embedded + seen.nodes_reused
            await context.report_progress(done, seen.nodes_total or None, answers.run_text(seen))


def _filter(
    place: Place,
    paths: Sequence[str],
    languages: Sequence[str],
    kinds: Sequence[str],
    symbols: Sequence[str],
) -> Filter:
    """Returns the filter of a call; what lies beneath the folder is searched, and no more."""
    return Filter(place.globs(paths), tuple(languages), tuple(kinds), tuple(symbols))
