"""The queue and the ledger against a small model of them, in any order that hypothesis finds.

The model is a dictionary of texts; the machine drives two replicas over one real database. Planted
bugs that turned it red: a release that leaves the attempt, a failure that is retried for ever, a
take-over that leaves nodes in work, a cursor that claims nodes by growing id alone.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.indexer.errors import RunOwnershipLostError
from services.indexer.model import Failure
from services.indexer.storage.database import Database
from tests.integration.replicas import content, parsed_file, replica, workspace_with_model
from tests.support.invariants import broken_rules, install_audit

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from services.indexer.model import ClaimedNode, RegisteredModel, Workspace
    from services.indexer.run import Run
    from tests.integration.replicas import Replica

_FINAL = Failure("ERROR_REASON_INVALID_UTF8", "never")
_PASSING = Failure("ERROR_REASON_OVERLOADED", "later", retryable=True)
_MOST_ATTEMPTS = 2
_EXAMPLES = int(os.environ.get("LODESTONE_TEST_SEEDS", "25"))
"""Walks through the machine; `make test-nightly` takes more."""

_STEPS = 20
_CRASHES = 3
_HAS_RESTED = "UPDATE runs SET updated_at = now() - interval '1 minute' WHERE state = 'queued'"
_MOST_TAKEN = 6
"""Times that a run is taken: more would end it stale."""


@dataclass
class _Node:
    """What the model knows of a node."""

    status: str = "pending"
    attempt: int = 0
    crashes: int = 0
    fence: int = 0
    passing: bool = False
    """Whether its failure may pass, so that a new run tries it again."""


@dataclass
class _Held:
    """What one replica believes to have."""

    stores: Replica
    run: Run | None = None
    claims: list[ClaimedNode] | None = None


class QueueMachine(RuleBasedStateMachine):
    """Two replicas, one workspace; each step is made on the database and on the model."""

    url: str
    loop: asyncio.AbstractEventLoop

    @initialize()
    def begin(self) -> None:
        """Makes a workspace of its own, with a run that nobody has taken."""
        self.number = next(_NUMBERS)
        self.database = Database(self.url, connections=4, timeout_seconds=30)
        self._do(self.database.open())
        self.replicas = [_Held(replica(self.database)), _Held(replica(self.database))]
        self.nodes: dict[int, _Node] = {}
        self.files: dict[str, list[int]] = {}
        self.cached: set[str] = set()
        stores = self.replicas[0].stores
        made: tuple[Workspace, RegisteredModel] = self._do(
            workspace_with_model(stores, f"tree-{self.number}")
        )
        self.workspace, self.model = made
        self._do(stores.queue(self.workspace))
        self.owner: int | None = None
        self.first_take = True
        self.taken = 0
        self.take(0)
        self.parse("a.py", ["a", "b", "c", "d"])

    def teardown(self) -> None:
        """Ends the run and closes the connections."""
        if not hasattr(self, "database"):
            return
        try:
            self._finish_whatever()
            assert self._do(broken_rules(self.url)) == []
        finally:
            self._do(self.database.close())

    @precondition(lambda self: self.taken < _MOST_TAKEN)
    @rule(who=st.integers(0, 1))
    def take(self, who: int) -> None:
        """Takes the run where it waits, or where its owner died (its lease is made to be over)."""
        if self.owner is not None:
            self._sql("UPDATE runs SET lease_until = now() - interval '1 s' WHERE owner = owner")
        self._sql(_HAS_RESTED)
        run = self._do(self.replicas[who].stores.ledger.take(_MOST_TAKEN + 1))
        assert run is not None
        for node in self.nodes.values():
            self._reclaim(node)
        self.replicas[who].run, self.replicas[who].claims = run, None
        self.owner, self.first_take = who, False
        self.taken += 1

    @precondition(lambda self: self.owner is not None)
    @rule(
        path=st.sampled_from(["a.py", "b.py"]),
        texts=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6),
    )
    def parse(self, path: str, texts: list[str]) -> None:
        """Plans a file: texts that stay keep their node, those of the cache are embedded."""
        held, run = self._owner()
        names = [f"{self.number}-{text}" for text in texts]
        self._do(held.stores.apply(run, self.model, parsed_file(path, *names)))
        rows = self._rows()
        for gone in self.nodes.keys() - rows.keys():
            del self.nodes[gone]
        for new in rows.keys() - self.nodes.keys():
            cached = self._text_of(rows[new]) in self.cached
            self.nodes[new] = _Node("embedded" if cached else "pending")

    @precondition(lambda self: self._with_run())
    @rule(number=st.integers(0, 1), limit=st.integers(1, 4))
    def claim(self, number: int, limit: int) -> None:
        """Claims in the order of ids, whatever was claimed before; who lost the run gets none."""
        who = self._pick(self._with_run(), number)
        held = self.replicas[who]
        assert held.run is not None
        self._sql("UPDATE nodes SET available_at = now()")
        claimed = self._do(held.stores.nodes.claim(held.run, limit))
        waiting = sorted(id_ for id_, node in self.nodes.items() if node.status == "pending")
        assert [node.id for node in claimed] == (waiting[:limit] if who == self.owner else [])
        for node in claimed:
            self.nodes[node.id].status = "processing"
            self.nodes[node.id].attempt += 1
            assert node.fence > self.nodes[node.id].fence
            self.nodes[node.id].fence = node.fence
            assert node.attempt == self.nodes[node.id].attempt
        held.claims = [*(held.claims or []), *claimed]

    @precondition(lambda self: self._with_claims())
    @rule(number=st.integers(0, 1), share=st.floats(0, 1))
    def complete(self, number: int, share: float) -> None:
        """Stores vectors of some claims; an old owner is refused, an ended claim left alone."""
        who = self._pick(self._with_claims(), number)
        held = self.replicas[who]
        assert held.run is not None
        assert held.claims
        some = held.claims[: max(1, int(len(held.claims) * share))]
        contents = {node.content_hash: content(node.content_hash) for node in some}
        work = held.stores.nodes.complete(held.run, self.model.id, contents, some, {})
        if who != self.owner:
            assert self._refused(work)
            return
        done = self._do(work)
        self.cached |= {node.content_hash.decode().rstrip("\0") for node in some}
        ended = sum(self._end(node, "embedded") for node in some)
        assert done.nodes_embedded + done.nodes_reused == ended

    @precondition(lambda self: self._with_claims())
    @rule(number=st.integers(0, 1), passing=st.booleans())
    def fail(self, number: int, passing: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """Fails the first claim: for good, or to be tried again while attempts are left."""
        who = self._pick(self._with_claims(), number)
        held = self.replicas[who]
        assert held.run is not None
        assert held.claims
        node = held.claims[0]
        failures = {node.id: _PASSING if passing else _FINAL}
        work = held.stores.nodes.fail(held.run, failures, [node], "embed", _MOST_ATTEMPTS)
        if who != self.owner:
            assert self._refused(work)
            return
        self._do(work)
        again = passing and node.attempt < _MOST_ATTEMPTS
        if self._end(node, "pending" if again else "failed"):
            self.nodes[node.id].passing = passing

    @precondition(lambda self: self._with_claims())
    @rule(number=st.integers(0, 1))
    def give_claims_back(self, number: int) -> None:
        """Gives claims back: no attempt is burnt, and an old owner's are left alone."""
        who = self._pick(self._with_claims(), number)
        held = self.replicas[who]
        assert held.run is not None
        assert held.claims
        self._do(held.stores.nodes.release(held.run, held.claims))
        for node in held.claims:
            if who == self.owner and self._end(node, "pending"):
                self.nodes[node.id].attempt -= 1
        held.claims = None

    @precondition(lambda self: self.owner is not None)
    @rule()
    def give_run_back(self) -> None:
        """Gives the run back, with all that is claimed."""
        held, run = self._owner()
        self._do(held.stores.ledger.release(run))
        self._release_all()
        held.run, held.claims, self.owner = None, None, None
        self.taken -= 1

    @precondition(lambda self: self.owner is not None)
    @rule()
    def end_and_begin_anew(self) -> None:
        """Ends the run and queues the next."""
        held, run = self._owner()
        self._do(held.stores.ledger.finish(run, None))
        self._release_all()
        self._do(held.stores.queue(self.workspace))
        held.run, held.claims, self.owner, self.first_take = None, None, None, True
        self.taken = 0

    @invariant()
    def the_database_is_as_the_model_says(self) -> None:
        """Each node is in the state that the model has, with as many attempts."""
        if not hasattr(self, "nodes"):
            return
        rows = self._rows()
        assert {id_: (row["status"], row["attempt"]) for id_, row in rows.items()} == {
            id_: (node.status, node.attempt) for id_, node in self.nodes.items()
        }

    def _reclaim(self, node: _Node) -> None:
        """What a take-over does to a node: crashes are counted, and a new run tries again."""
        if node.status == "processing":
            node.crashes += 1
            node.status = "failed" if node.crashes >= _CRASHES else "pending"
            node.passing = False
        elif node.status == "failed" and self.first_take and node.passing:
            node.status, node.attempt, node.crashes = "pending", 0, 0

    def _end(self, node: ClaimedNode, status: str) -> bool:
        """Ends a claim in the model; returns whether it still stood."""
        known = self.nodes.get(node.id)
        if known is None or (known.status, known.fence) != ("processing", node.fence):
            return False
        known.status = status
        if status == "embedded":
            known.crashes = 0
        return True

    def _release_all(self) -> None:
        for node in self.nodes.values():
            if node.status == "processing":
                node.status, node.attempt = "pending", node.attempt - 1

    def _finish_whatever(self) -> None:
        stores = self.replicas[0].stores
        self._sql("UPDATE runs SET lease_until = now() - interval '1 s' WHERE owner = owner")
        self._sql(_HAS_RESTED)
        if (run := self._do(stores.ledger.take(_MOST_TAKEN + 1))) is not None:
            self._do(stores.ledger.finish(run, None))

    def _with_run(self) -> list[int]:
        return [who for who, held in enumerate(self.replicas) if held.run is not None]

    def _with_claims(self) -> list[int]:
        return [who for who in self._with_run() if self.replicas[who].claims]

    def _pick(self, able: list[int], number: int) -> int:
        """Returns one of those who can, so that no step is wasted on one who cannot."""
        return able[number % len(able)]

    def _owner(self) -> tuple[_Held, Run]:
        assert self.owner is not None
        held = self.replicas[self.owner]
        assert held.run is not None
        return held, held.run

    def _refused(self, work: Coroutine[Any, Any, Any]) -> bool:
        try:
            self._do(work)
        except RunOwnershipLostError:
            return True
        return False

    def _text_of(self, row: Any) -> str:
        return bytes(row["content_hash"]).decode().rstrip("\0")

    def _rows(self) -> dict[int, Any]:
        async def read() -> list[Any]:
            async with self.database.connection() as connection:
                rows: list[Any] = await connection.fetch(
                    "SELECT id, status, attempt, content_hash FROM nodes WHERE workspace_id = $1",
                    self.workspace.id,
                )
                return rows

        return {row["id"]: row for row in self._do(read())}

    def _sql(self, sql: str) -> None:
        self._do(self.replicas[0].stores.value(sql))

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)


_NUMBERS = iter(range(1_000_000))


@pytest.mark.timeout(300 + 10 * _EXAMPLES)
def test_the_queue_is_as_its_model_whatever_the_order(migrated_url: str) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(install_audit(migrated_url))
    machine = type("Machine", (QueueMachine,), {"url": migrated_url, "loop": loop})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes
                max_examples=_EXAMPLES,
                stateful_step_count=_STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.close()
