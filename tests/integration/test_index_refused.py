"""A service refuses the indexer's token for a while, as while tokens are changed: no work is lost.

Planted bug that turned these red: such a call told each of its files and texts that it failed for
good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services.runtime.errors import ForbiddenError, UnauthenticatedError
from tests.integration.indexing import State, indexing
from tests.integration.io_hooks import IoHook
from tests.integration.oracle import check
from tests.integration.samples import write_many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from services.runtime.errors import LodestoneError
    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

REFUSALS = (UnauthenticatedError("The token has expired."), ForbiddenError("It may not do this."))


@pytest.fixture
def io_hook(monkeypatch: pytest.MonkeyPatch) -> IoHook:
    hook = IoHook()
    hook.install(monkeypatch)
    return hook


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook, io_hook: IoHook
) -> AsyncIterator[Indexing]:
    write_many(roots / "tree", 1)
    async with indexing(roots, sockets, migrated_url, embed=hook.app) as running:
        await running.create("tree", "tree")
        yield running


def _refuse(*errors: LodestoneError) -> Callable[..., list[Any]]:
    """Returns what raises each of the errors once, and then lets answers pass."""
    left = list(errors)

    def spoil(answer: Any, _texts: Any = None) -> list[Any]:
        if left:
            raise left.pop()
        return [answer]

    return spoil


@pytest.mark.parametrize("method", ["ScanTree", "ParseFiles", "ReadContents", "Embed"])
async def test_a_token_that_is_refused_for_a_while_costs_a_wait(
    services: Indexing, hook: Hook, io_hook: IoHook, method: str
) -> None:
    if method == "Embed":
        hook.spoil = _refuse(*REFUSALS)
    else:
        io_hook.spoil[method] = _refuse(*REFUSALS)

    run = await services.run("tree")

    assert run.state == State.STATE_SUCCEEDED, run
    assert (run.progress.nodes_failed, run.progress.files_failed) == (0, 0)
    await check(services, "tree", "tree")
