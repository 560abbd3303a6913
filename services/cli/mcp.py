"""`lodestone mcp`: the MCP server over the stack of a data folder."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shlex
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli.channels import TOKEN_FILE
from services.cli.scope import around, existing_path
from services.cli.stack import Stack
from services.cli.trees import resolve_tree, tree_path
from services.client import CallError, Lodestone
from services.mcp.backend import BackendError, NewWorkspace, Place
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.client import Workspace


def run_mcp(root: Path, path: str) -> ExitCode:
    """Serves until standard input ends, or at once at Ctrl+C."""
    from services.mcp.server import build_server

    folder = Path(path).resolve()
    # A host that starts the server nowhere in particular does so in `/`: that is no choice.
    default = "" if folder == Path(folder.anchor) else str(folder)
    backend = StackBackend(root, default)
    server = build_server(backend, default, importlib.metadata.version("lodestone"))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Else it would wait for the thread that reads standard input, until that ends.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        server.run("stdio")
    except* BrokenPipeError:
        pass  # its client is gone
    return ExitCode.OK


class StackBackend:
    """The stack of one data folder, started when it is needed."""

    def __init__(self, root: Path, default_folder: str) -> None:
        self._root = root
        self._default_folder = default_folder
        self._starting = threading.Lock()
        self._client: Lodestone | None = None
        self._address = ""
        self._roots = ""

    async def client(self) -> Lodestone:
        """Returns a client of the indexer that runs now; it may be another than the last."""
        try:
            address, self._roots = await asyncio.to_thread(self._ensure)
        except StartError as error:
            raise BackendError(
                f"Lodestone does not start: {error.message} A person can look into it with: "
                "lodestone doctor"
            ) from error
        except OSError as error:
            raise BackendError(f"Lodestone does not start: {error.strerror}") from error
        if self._client is None or address != self._address:
            await self.close()
            self._client, self._address = _connect(address), address
        return self._client

    def place_of(self, folder: str, workspaces: Sequence[Workspace]) -> Place | None:
        """Returns the innermost workspace around a folder of this machine, or None."""
        if not Path(folder).is_absolute():
            return None
        trees = [(each.name, each.root, each.directory) for each in workspaces]
        try:
            found = around(trees, existing_path(folder), self._roots)
        except StartError as error:
            raise BackendError(error.message) from error
        except OSError as error:
            raise BackendError(f"{folder}: {error.strerror}.") from error
        return None if found is None else Place(found.workspace, found.folder)

    def folder_of(self, workspace: Workspace) -> str:
        """Returns where a workspace's tree lies."""
        found = tree_path(workspace.root, workspace.directory, self._roots)
        return str(found) if found else ""

    def new_workspace(self, folder: str) -> NewWorkspace:
        """Returns a folder as a workspace, when a person started this server for it or around it.

        What a page or a file tells an assistant to index is not for it to decide.
        """
        asked = Path(folder).resolve() if folder else None
        allowed = Path(self._default_folder) if self._default_folder else None
        if asked is None or allowed is None or (asked != allowed and allowed not in asked.parents):
            raise BackendError(
                f"{folder or 'No folder'} is not indexed, and this server may index "
                f"{f'what lies in {allowed}' if allowed else 'no new folder'} alone. A person "
                f"does it with: lodestone index {shlex.quote(folder) if folder else 'PATH'}"
            )
        try:
            tree = resolve_tree(str(asked), self._roots)
        except StartError as error:
            raise BackendError(error.message) from error
        return NewWorkspace(tree.workspace_id, tree.root, tree.directory, tree.display_name)

    async def close(self) -> None:
        """Ends all calls."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _ensure(self) -> tuple[str, str]:
        with self._starting:
            state = Stack(self._root, os.environ).ensure()
        return state.processes["indexer"].address, state.roots


def _connect(address: str) -> Lodestone:
    """Returns a client that shows the command's token, when it has one."""
    name = os.environ.get(TOKEN_FILE, "")
    try:
        return Lodestone.connect(address, token_file=Path(name) if name else None)
    except CallError as error:
        raise BackendError(error.message) from error
