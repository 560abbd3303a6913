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
    from collections.abc import Iterator, Sequence

    from services.indexer.model import ClaimedNode, RegisteredModel, Run
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
        stores, run = self.stores, self.run
        match what:
            case "beat":
                await stores.ledger.beat(run)
            case "cancel_and_beat":
                await stores.ledger.request_cancel(run)
                await stores.ledger.beat(run)
            case "complete":
                await stores.complete(run, self.model, self.claimed)
            case "fail":
                failures = {node.id: _FAILURE for node in self.claimed}
                await stores.nodes.fail(run, failures, self.claimed, "embed", 1)
            case "release":
                await stores.nodes.release(run, self.claimed)
            case "adopt":
                await stores.nodes.adopt(run, self.model.id, self.claimed)
            case "apply":
                await stores.apply(run, self.model, parsed_file("b.py", "late"))
            case "remove":
                await stores.files.remove(run, ["a.py"])
            case "claim":
                self.claimed += await stores.nodes.claim(run, _NODES)
            case "finish_scan":
                await stores.ledger.finish_scan(run, {}, ())
            case "finish_plan":
                await stores.ledger.finish_plan(run)
            case "finish":
                await stores.ledger.finish(run, None)
            case "give_back":
                await stores.ledger.release(run)
            case _:
                raise AssertionError(what)


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

    Red on planted bugs: a completion that looks at the state and not at the fence, the same of a
    release and a failure, a beat by the run's id alone, a claim that does not look at the run.
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
