"""The second half of a run: claim, fetch, embed, commit, many batches at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING

from services.indexer import metrics
from services.indexer.budgets import ItemBudget
from services.indexer.forwards import Forwards
from services.indexer.model import (
    CHANGED_REASONS,
    ClaimedNode,
    EmbeddedContent,
    EmbedModel,
    Failure,
    NodeId,
    RegisteredModel,
)
from services.indexer.patience import Patience
from services.indexer.search.terms import content_terms
from services.runtime.failpoints import failpoint
from services.runtime.telemetry import start_as_current_span, tell_failed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from opentelemetry.trace import Span

    from services.indexer.embed_client import EmbedClient
    from services.indexer.forwards import ForwardGate
    from services.indexer.io_client import IoClient
    from services.indexer.model import Tree
    from services.indexer.run import Run
    from services.indexer.settings import IndexerSettings
    from services.indexer.stops import StopSignal
    from services.indexer.storage.model_queue import ModelQueue
    from services.indexer.storage.nodes import NodeQueue, Outlook
    from services.indexer.text_bytes import TextBudget
    from services.indexer.turns import ClaimTurns

_LONGEST_IDLE_SECONDS = 0.2
"""Time after which a worker looks again though no full batch was planned."""

_LONGEST_WAIT_SECONDS = 1.0
_HOLD_POLL_SECONDS = 0.5
_MOST_REPLANS = 3


class Embedder:
    """Embeds the nodes of a run that wait, until none is left or the run is to stop.

    Batches overlap: while one is in the model, others are fetched or committed. Nodes with one text
    share one forward, also across batches.
    """

    def __init__(
        self,
        run: Run,
        tree: Tree,
        model: RegisteredModel,
        remote: EmbedModel,
        *,
        io: IoClient,
        embed: EmbedClient,
        gate: ForwardGate,
        nodes: NodeQueue | ModelQueue,
        turns: ClaimTurns,
        texts: TextBudget,
        stop: StopSignal,
        replan: Callable[[Sequence[str]], Awaitable[None]],
        settings: IndexerSettings,
        on_progress: Callable[[], None],
    ) -> None:
        self._run = run
        self._tree = tree
        self._model = model
        self._remote_model = remote
        self._io = io
        self._nodes = nodes
        self._replan = replan
        self._settings = settings
        self._on_progress = on_progress
        self._turns = turns
        self._texts = texts
        self._stop = stop
        self._patience = Patience(settings.dependency_patience_seconds)
        self._budget = ItemBudget(self._patience, io.probe)
        self._forwards = Forwards(embed, gate, self._patience)
        self._all_planned = asyncio.Event()
        self._unclaimed = 0
        """Nodes that were planned since a claim found nothing, at most."""
        self._idle: list[asyncio.Event] = []
        """Of each worker that waits for nodes to be planned."""
        self._in_flight: dict[bytes, asyncio.Event] = {}
        self._replans: Counter[str] = Counter()
        # A run of a model beside the active one changes no node: the next run over files does.
        self._most_replans = _MOST_REPLANS if run.model_id is None else 0
        self._cursor = 0
        """Where the present pass over a scoped run's nodes has come to."""

    def more_nodes(self, count: int) -> None:
        """Tells that up to `count` more nodes wait: a worker is woken for each full batch."""
        self._unclaimed += count
        while self._idle and self._takes_full_batch():
            self._idle.pop().set()

    def no_more_nodes(self) -> None:
        """Tells that the plan is finished: once nothing waits, the work is done."""
        self._all_planned.set()
        self.look_again()

    def look_again(self) -> None:
        """Wakes all that wait for nodes to be planned."""
        while self._idle:
            self._idle.pop().set()

    async def run(self) -> bool:
        """Returns whether all is done: false when the run was stopped before.

        A stop lets batches in flight come to their end; no other is claimed.
        """
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._work(), name=f"embed-{number}")
                for number in range(self._settings.embed_batches_in_flight)
            ]
        return all(worker.result() for worker in workers)

    async def _work(self) -> bool:
        """Claims and embeds until nothing waits; returns false when the run is to stop.

        Whoever gives nodes back claims again afterwards, so a worker may leave while others work.
        """
        while not self._stop.asked:
            # Read before the claim: nodes planned after an empty claim are claimed next time.
            planned = self._all_planned.is_set()
            if await self._embed_next():
                continue
            if not planned:
                await self._wait_for_plan()
                continue
            outlook = await self._nodes.outlook(self._run)
            if outlook.wait_seconds is None and not outlook.stopping:
                return True
            await self._wait(outlook)
        return False

    async def _embed_next(self) -> bool:
        """Embeds the next batch; returns whether there was one."""
        async with self._turns.turn(self._run.id, self._run.priority):
            await failpoint("indexer.claim.before")
            claimed = [] if self._stop.asked else await self._claim()
            if claimed:
                await failpoint("indexer.claim.after")
                await self._embed_batch(claimed)
        return bool(claimed)

    async def _claim(self) -> list[ClaimedNode]:
        """Claims in passes: an empty rest of one begins the next, as ids may come in late."""
        size = self._settings.embed_batch_nodes
        claimed = await self._nodes.claim(self._run, size, self._cursor)
        if not claimed and self._cursor:
            self._cursor = 0
            claimed = await self._nodes.claim(self._run, size)
        if claimed and self._run.is_scoped:
            self._cursor = max(self._cursor, claimed[-1].id)
        return claimed

    async def _wait(self, outlook: Outlook) -> None:
        seconds = min(_LONGEST_WAIT_SECONDS, max(0.01, outlook.wait_seconds or 0.0))
        if outlook.on_hold or outlook.stopping:
            seconds = _HOLD_POLL_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    def _takes_full_batch(self) -> bool:
        full = self._unclaimed >= self._settings.embed_batch_nodes
        self._unclaimed -= self._settings.embed_batch_nodes if full else 0
        return full

    async def _wait_for_plan(self) -> None:
        if self._all_planned.is_set() or self._stop.asked or self._takes_full_batch():
            return
        self._unclaimed = 0
        told = asyncio.Event()
        self._idle.append(told)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_IDLE_SECONDS):
                await told.wait()
        if told in self._idle:
            self._idle.remove(told)

    async def _embed_batch(self, claimed: Sequence[ClaimedNode]) -> None:
        with start_as_current_span(
            "lodestone.indexer.batch", attributes={"lodestone.nodes": len(claimed)}
        ):
            leading = [node for node in claimed if node.content_hash not in self._in_flight]
            following = [node for node in claimed if node.content_hash in self._in_flight]
            if leading:
                await self._lead(leading)
            if following:
                await self._follow(following)
        self._on_progress()

    async def _lead(self, nodes: Sequence[ClaimedNode]) -> None:
        """Embeds texts that no other batch has in flight, unless the cache has them by now.

        They are told to be in flight before the cache is looked at: whoever had one in flight until
        now has put it there.
        """
        done = asyncio.Event()
        hashes = {node.content_hash for node in nodes}
        self._in_flight.update(dict.fromkeys(hashes, done))
        try:
            left = await self._adopt(nodes)
            for part in self._texts.parts(left):
                async with self._texts.hold(part):
                    await self._forward(part)
        finally:
            for content_hash in hashes:
                del self._in_flight[content_hash]
            done.set()

    async def _follow(self, nodes: Sequence[ClaimedNode]) -> None:
        """Waits for the batches that embed these texts, and takes their vectors."""
        leaders = [self._in_flight.get(node.content_hash) for node in nodes]
        for leader in leaders:
            if leader is not None:
                await leader.wait()
        left = await self._adopt(nodes)
        if left:  # the leader failed: each stands on its own
            await self._nodes.release(self._run, left)

    async def _adopt(self, nodes: Sequence[ClaimedNode]) -> list[ClaimedNode]:
        """Takes the vectors that the cache has; returns the nodes without one."""
        left = await self._nodes.adopt(self._run, self._model.id, nodes)
        metrics.NODES.labels("reused").inc(len(nodes) - len(left))
        return [node for node in nodes if node.id in left]

    async def _forward(self, nodes: Sequence[ClaimedNode]) -> None:
        seconds: dict[str, float] = {}
        await failpoint("indexer.fetch.before")
        with self._stage("fetch", seconds) as span:
            texts, unread = await self._read(nodes)
            reasons = [failure.reason for failure in unread.values()]
            tell_failed(span, [reason for reason in reasons if reason not in CHANGED_REASONS])
        await failpoint("indexer.fetch.after")
        await failpoint("indexer.forward.before")
        with self._stage("embed", seconds) as span:
            contents, unfit = await self._embed_texts(texts)
            tell_failed(span, [failure.reason for failure in unfit.values()])
        await failpoint("indexer.forward.after")
        await failpoint("indexer.commit.before")
        with self._stage("commit", {}):
            await self._commit(nodes, contents, seconds)
        await failpoint("indexer.commit.after")
        if unread:
            await self._end_unread(nodes, unread, seconds["fetch"] / len(nodes))
        if unfit:
            spent = seconds["fetch"] + seconds["embed"]
            await self._fail(nodes, unfit, "embed", spent / len(nodes))

    @contextlib.contextmanager
    def _stage(self, name: str, seconds: dict[str, float]) -> Iterator[Span]:
        """Traces and times one stage of a batch; what raises is not counted."""
        started = time.perf_counter()
        with start_as_current_span(f"lodestone.indexer.{name}") as span:
            yield span
        seconds[name] = time.perf_counter() - started
        metrics.STAGE_SECONDS.labels(name).observe(seconds[name])

    async def _read(
        self, nodes: Sequence[ClaimedNode]
    ) -> tuple[dict[bytes, str], dict[NodeId, Failure]]:
        """Returns each text once, read for the first node that has it, and why others are not."""
        by_text = {node.content_hash: node for node in reversed(nodes)}
        wanted = list(by_text.values())
        results = await self._budget.call(
            wanted, lambda some: self._io.read_contents(self._tree, some), _timed_out
        )
        texts: dict[bytes, str] = {}
        unread: dict[NodeId, Failure] = {}
        for node, result in zip(wanted, results, strict=True):
            if isinstance(result, Failure):
                unread[node.id] = result
            else:
                texts[node.content_hash] = result
        return texts, unread

    async def _embed_texts(
        self, texts: Mapping[bytes, str]
    ) -> tuple[dict[bytes, EmbeddedContent], dict[bytes, Failure]]:
        if not texts:
            return {}, {}
        ordered = list(texts.values())
        # Terms are cut while the model works.
        vectors, terms = await asyncio.gather(
            self._forwards.embed(self._remote_model, ordered),
            asyncio.to_thread(lambda: [content_terms(text) for text in ordered]),
        )
        contents: dict[bytes, EmbeddedContent] = {}
        unfit: dict[bytes, Failure] = {}
        for content_hash, vector, counts in zip(texts, vectors, terms, strict=True):
            if isinstance(vector, Failure):
                unfit[content_hash] = vector
            else:
                contents[content_hash] = EmbeddedContent(
                    content_hash, vector.values, vector.token_count, vector.truncated, counts
                )
        return contents, unfit

    async def _commit(
        self,
        nodes: Sequence[ClaimedNode],
        contents: Mapping[bytes, EmbeddedContent],
        seconds: Mapping[str, float],
    ) -> None:
        if not contents:
            return
        ready = [node for node in nodes if node.content_hash in contents]
        done = await self._nodes.complete(self._run, self._model.id, contents, ready, seconds)
        if done.nodes_embedded + done.nodes_reused < len(ready):
            # What is still claimed, as a repair forgot its text, goes back.
            await self._nodes.release(self._run, ready)
        metrics.FORWARDS.inc(done.forwards)
        metrics.NODES.labels("embedded").inc(done.nodes_embedded)
        metrics.NODES.labels("reused").inc(done.nodes_reused)

    async def _end_unread(
        self, nodes: Sequence[ClaimedNode], unread: Mapping[NodeId, Failure], seconds_each: float
    ) -> None:
        """Plans files again that changed under the run, and fails what cannot be read.

        Twins of a node that was not read stand in other places: each is read for itself.
        """
        named = [node for node in nodes if node.id in unread]
        again = [
            node
            for node in named
            if unread[node.id].reason in CHANGED_REASONS
            and self._replans[node.path] < self._most_replans
        ]
        paths = sorted({node.path for node in again})
        self._replans.update(paths)
        if paths:
            await self._replan(paths)
        given_up = {node.id for node in named} - {node.id for node in again}
        hashes = {node.content_hash for node in named}
        twins = [node for node in nodes if node.content_hash in hashes and node.id not in unread]
        await self._nodes.release(self._run, [*again, *twins])
        await self._end(nodes, {node: unread[node] for node in given_up}, "fetch", seconds_each)

    async def _fail(
        self,
        nodes: Sequence[ClaimedNode],
        failures: Mapping[bytes, Failure],
        stage: str,
        seconds_each: float,
    ) -> None:
        failed = {
            node.id: failures[node.content_hash] for node in nodes if node.content_hash in failures
        }
        await self._end(nodes, failed, stage, seconds_each)

    async def _end(
        self,
        nodes: Sequence[ClaimedNode],
        failed: Mapping[NodeId, Failure],
        stage: str,
        seconds_each: float,
    ) -> None:
        if not failed:
            return
        most = self._settings.node_max_attempts
        given_up = await self._nodes.fail(
            self._run, failed, nodes, stage, most, seconds=seconds_each
        )
        metrics.NODES.labels("failed").inc(given_up)
        metrics.NODES.labels("retried").inc(len(failed) - given_up)


def _timed_out(_node: ClaimedNode) -> str | Failure:
    return Failure("ERROR_REASON_TIMEOUT", "The text was not read within its time.")
