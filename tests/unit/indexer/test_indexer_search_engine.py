"""A search of much leaves the loop to others."""

from __future__ import annotations

import asyncio

from services.indexer.model import NodeId, NodeKind
from services.indexer.search.engine import ranked_aside
from services.indexer.search.model import Hit
from services.indexer.search.question import read_question
from services.indexer.search.ranking import Arms, rank
from services.indexer.search.weights import DEFAULTS

_MANY = 20_000


def _hit(number: int) -> Hit:
    return Hit(
        workspace_name=f"web-{number % 10}",
        node_id=NodeId(number),
        path=f"src/part_{number % 997}.py",
        digest=bytes(32),
        kind=NodeKind.FUNCTION,
        qualified_name=f"work_{number}",
        language="python",
        start_byte=number,
        end_byte=number + 9,
        start_line=1,
        end_line=2,
        score=0.0,
    )


async def test_many_hits_are_ranked_beside_the_loop() -> None:
    """As a hundred workspaces at once give them. Red when they are ranked in the loop."""
    hits = [_hit(number) for number in range(_MANY)]
    arms = Arms(dense={hit.node_id: hit.node_id / _MANY for hit in hits})
    asked = read_question("how is work done")
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    ranked = await ranked_aside(DEFAULTS, asked, arms, hits)
    others.cancel()

    assert ranked == rank(DEFAULTS, asked, arms, hits)
    assert turns > 5
