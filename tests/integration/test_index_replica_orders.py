"""F15: two replicas stepped through every order of beat, complete, reap, claim and end.

The first replica has the run and claims on its nodes. Its steps are merged with those of the second
in every way that keeps each one's own order; the second's take-over is what ends the first's lease.
Whatever the order, what the first does before the take-over counts, and what it does after it is
refused and writes nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from services.indexer.errors import RunOwnershipLostError
from services.indexer.model import Failure
from tests.integration.replicas import (
    Replica,
    parsed_file,
    replica,
    workspace_with_model,
)
from tests.support.invariants import broken_rules, install_audit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from services.indexer.model import ClaimedNode, RegisteredModel
    from services.indexer.run import Run
    from services.indexer.storage.database import Database

_FAILURE = Failure("ERROR_REASON_INVALID_UTF8", "never")
_NODES = 3
_FIRSTS = (
    ("beat", "complete", "finish"),
    ("beat", "fail", "finish"),
    ("beat", "release", "give_back"),
    ("apply", "complete", "remove"),
    ("claim", "adopt", "finish"),
    ("finish_scan", "finish_plan", "cancel_and_beat"),
)
_SECOND = ("reap", "claim", "complete", "finish")


def _merges(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[tuple[int, str], ...]]:
    """Yields every merge of two sequences, as (whose, what)."""
    places = range(len(first) + len(second))
    for chosen in itertools.combinations(places, len(first)):
        steps = [iter(first), iter(second)]
        yield tuple(
            (whose, next(steps[whose])) for whose in (0 if at in chosen else 1 for at in places)
        )


@dataclass
class _Actor:
    """A replica with what it believes to have."""

    stores: Replica
    model: RegisteredModel
    run: Run
    claimed: list[ClaimedNode] = field(default_factory=list)

    async def step(self, what: str) -> None:
        """Does one step as its process would. Raises RunOwnershipLostError."""
        await _STEPS[what](self)

    async def claim(self) -> None:
        """Claims what waits."""
        self.claimed += await self.stores.nodes.claim(self.run, _NODES)

    async def fail(self) -> None:
        """Ends the claims as failed."""
        failures = {node.id: _FAILURE for node in self.claimed}
        await self.stores.nodes.fail(self.run, failures, self.claimed, "embed", 1)

    async def cancel_and_beat(self) -> None:
        """Asks for the end of the run, as anyone may, and beats."""
        await self.stores.ledger.request_cancel(self.run)
        await self.stores.ledger.beat(self.run)


_STEPS: dict[str, Callable[[_Actor], Awaitable[object]]] = {
    "beat": lambda it: it.stores.ledger.beat(it.run),
    "cancel_and_beat": lambda it: it.cancel_and_beat(),
    "complete": lambda it: it.stores.complete(it.run, it.model, it.claimed),
    "fail": lambda it: it.fail(),
    "release": lambda it: it.stores.nodes.release(it.run, it.claimed),
    "adopt": lambda it: it.stores.nodes.adopt(it.run, it.model.id, it.claimed),
    "apply": lambda it: it.stores.apply(it.run, it.model, parsed_file("b.py", "late")),
    "remove": lambda it: it.stores.files.remove(it.run, ["a.py"]),
    "claim": lambda it: it.claim(),
    "finish_scan": lambda it: it.stores.ledger.finish_scan(it.run, {}, ()),
    "finish_plan": lambda it: it.stores.ledger.finish_plan(it.run),
    "finish": lambda it: it.stores.ledger.finish(it.run, None),
    "give_back": lambda it: it.stores.ledger.release(it.run),
}

_REFUSED = {
    "beat",
    "apply",
    "remove",
    "finish",
    "finish_scan",
    "finish_plan",
    "cancel_and_beat",
    "complete",
    "fail",
}
"""What raises once the run is another's; releases and claims find nothing, and are silent."""


@pytest.mark.parametrize("first", _FIRSTS, ids="-".join)
async def test_no_order_lets_an_old_owner_write(database: Database, first: tuple[str, ...]) -> None:
    """I1 to I5 after every merge; every step after the take-over is refused.

    Red on planted bugs: a run that is held by its id and not by its fence, a beat by the run's id
    alone, a release that does not look at the fence of the node, a claim that does not look at the
    run. A completion that does not look at the fence of the node is still refused here, by the run;
    within one run it turns test_index_queue red.
    """
    await install_audit(database._url)
    one, two = replica(database), replica(database)
    for number, merge in enumerate(_merges(first, _SECOND)):
        await _play(one, two, f"tree{number}", merge)


async def _play(one: Replica, two: Replica, name: str, merge: tuple[tuple[int, str], ...]) -> None:
    workspace, model = await workspace_with_model(one, name)
    await one.queue(workspace)
    owner = _Actor(one, model, await one.take())
    await one.apply(owner.run, model, parsed_file("a.py", *(f"{name}-{i}" for i in range(_NODES))))
    await owner.step("claim")
    heir: _Actor | None = None
    for whose, what in merge:
        if whose == 0:
            await _old(owner, what, lost=heir is not None, merge=merge)
        elif what == "reap":
            heir = await _reap(two, model, owner, merge)
            if heir is None:
                break  # the owner had ended the run: there is nothing to take
        else:
            assert heir is not None
            assert heir.run.fence > owner.run.fence
            await _step_of_heir(heir, what, merge)
    await _end(two, name)
    assert await broken_rules(one.database._url) == [], merge


async def _old(owner: _Actor, what: str, *, lost: bool, merge: object) -> None:
    before = await _state(owner.stores)
    try:
        await owner.step(what)
    except RunOwnershipLostError:
        return
    if lost:
        assert what not in _REFUSED, (what, merge)
        assert await _state(owner.stores) == before, (what, merge)


async def _state(stores: Replica) -> object:
    """Returns what no refused step may change."""
    async with stores.database.connection() as connection:
        return (
            await connection.fetch(
                "SELECT id, status, fence, attempt, lease_owner FROM nodes ORDER BY id"
            ),
            await connection.fetch("SELECT node_id, fence FROM node_vectors_m1 ORDER BY node_id"),
            await connection.fetch("SELECT id, state, fence, owner, version FROM runs ORDER BY id"),
            await connection.fetch("SELECT * FROM run_outcomes ORDER BY run_id, path, node_id"),
        )


async def _reap(
    two: Replica, model: RegisteredModel, owner: _Actor, merge: object
) -> _Actor | None:
    """Lets the lease run out, and takes the run over."""
    await two.value(
        "UPDATE runs SET lease_until = now() - interval '1 s' WHERE id = $1 AND owner IS NOT NULL",
        owner.run.id,
    )
    run = await two.ledger.take(10)
    if run is None:
        return None
    assert run.id == owner.run.id, merge
    return _Actor(two, model, run)


async def _step_of_heir(heir: _Actor, what: str, merge: object) -> None:
    try:
        await heir.step(what)
    except RunOwnershipLostError as error:
        raise AssertionError(f"the heir was refused {what} in {merge}") from error


async def _end(stores: Replica, name: str) -> None:
    """Ends what is left, so that the rules of an idle database hold."""
    if (run := await stores.ledger.take(10)) is not None:
        await stores.ledger.finish(run, None)
    assert (
        await stores.value(
            "SELECT count(*) FROM runs r JOIN workspaces w ON w.id = r.workspace_id "
            "WHERE w.name = $1 AND r.finished_at IS NULL",
            name,
        )
        == 0
    )
