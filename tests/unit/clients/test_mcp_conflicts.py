"""What an assistant is told when the state does not allow a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from mcp.server.mcpserver.exceptions import ToolError

from services.client import StateConflictError
from services.mcp.tools import Tools

if TYPE_CHECKING:
    from services.mcp.backend import Backend


class _Refusing:
    """A backend whose calls all end in one conflict."""

    def __init__(self, message: str, metadata: dict[str, str]) -> None:
        self._error = StateConflictError(
            message, code="FAILED_PRECONDITION", reason="STATE_CONFLICT", metadata=metadata
        )

    async def client(self) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("message", "state", "allowed", "is_to_index"),
    [
        ("Workspace web has not been indexed yet.", "empty", "indexed", True),
        ("Ask each workspace by itself.", "different models", "one model", False),
        ("A run of this workspace is not finished.", "paused", "finished", False),
        ("This server has no reranker.", "no reranker", "a reranker", False),
    ],
)
async def test_only_an_empty_workspace_is_to_be_indexed(
    message: str, state: str, allowed: str, *, is_to_index: bool
) -> None:
    """Others say what they are; red when an assistant is sent to index what is indexed."""
    refusing = _Refusing(message, {"state": state, "allowed": allowed})

    with pytest.raises(ToolError) as refused:
        await Tools(cast("Backend", refusing), "").search("x")

    told = str(refused.value)
    assert message in told
    assert ("Call `index` first" in told) == is_to_index
    assert (f"state: {state}; allowed: {allowed}" in told) != is_to_index
