"""The server, with what it tells of itself and of its tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcp.server import MCPServer
from mcp.types import ToolAnnotations

from services.mcp.tools import Tools

if TYPE_CHECKING:
    from services.mcp.backend import Backend

_INSTRUCTIONS = """\
Lodestone finds code by meaning and by name in folders that are indexed on this machine, and \
shows only what the files hold now. Use `search` to find where something is done, `context` to \
gather the code that a question needs, `read` for the lines of a file that was found, `status` for \
what is indexed, and `index` after files changed."""


def build_server(backend: Backend, default_folder: str, version: str) -> MCPServer:
    """Returns a server that is not running yet.

    Args:
        backend: where the services are.
        default_folder: what calls without a folder are about; empty is none.
        version: of this product, as clients are told it.
    """
    server = MCPServer(
        "lodestone", instructions=_INSTRUCTIONS, version=version, log_level="WARNING"
    )
    tools = Tools(backend, default_folder)
    for tool in (tools.search, tools.context, tools.read, tools.status):
        server.add_tool(
            tool,
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
            structured_output=False,
        )
    server.add_tool(
        tools.index,
        annotations=ToolAnnotations(
            read_only_hint=False,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
        structured_output=False,
    )
    return server
