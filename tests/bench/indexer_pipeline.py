"""The pipeline against the sequential loop of the same stages, and what a small change costs.

The loop makes the same calls to the same services and the same transactions, one after the other.
The model that hashes takes next to no time, so on a machine with few cores it shows only what the
cores allow; another round holds each call to the model up for a while, as a model on a device or
behind a network does, which shows what the overlap is worth.

Indexes for searches are not made: the indexer makes them once a large run is done, and what comes
after the run over 10,000 files would share the cores with that.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.indexer.embed_client import EmbedClient, Vector
from services.indexer.io_client import IoClient
from services.indexer.model import EmbeddedContent, Failure, Tree
from services.indexer.run_spec import IfRunning, RunSpec
from services.indexer.search.terms import content_terms
from services.indexer.storage.database import Database
from services.runtime.channel import connect
from tests.bench.figures import figure, print_measured, say
from tests.bench.generate import file_path, write_tree
from tests.bench.indexer_rig import Rig, running
from tests.faults.cluster import ROOT
from tests.integration.replicas import replica

if TYPE_CHECKING:
    from pathlib import Path

    from services.indexer.model import ClaimedNode, EmbedModel, RegisteredModel
    from services.indexer.run import Run
    from tests.integration.replicas import Replica

_SIZES = {100: 1.3, 1_000: 2.0, 10_000: 2.5}
"""Files of a tree, with the speed-up that is asked for where there are enough cores."""

_FUNCTIONS = 2
_PARSE_FILES, _EMBED_NODES = 32, 128
_ROUNDS = {100: 3, 1_000: 3, 10_000: 1}
_HELD_SECONDS = 0.1
_UNCHANGED_ROUNDS = 5


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the speed-ups, the time of an unchanged file, and the forwards of one edit."""
    figures: dict[str, dict[str, Any]] = {}
    with running(scratch, TERM_INDEX_NODES="0", VECTOR_INDEX_NODES="0") as rig:
        for held_seconds, label in ((_HELD_SECONDS, "held_up"), (0.0, "hashing")):
            rig.embed.kill()
            rig.embed.start(f"embed.forward.before=sleep:{held_seconds}@1+")
            for files, goal in _SIZES.items():
                if held_seconds and files > 1_000:
                    continue
                ratio = statistics.median(
                    _speed_up(rig, f"{label.replace('_', '-')}-{files}-{number}", files)
                    for number in range(_ROUNDS[files])
                )
                say(f"{label}, {files} files: {ratio:.2f} times the sequential loop")
                name = f"pipeline_to_sequential_{label}_{files}_files"
                figures[name] = figure(ratio, goal, met=ratio >= goal)
        figures |= _small_changes(rig, scratch)
    return figures


def _speed_up(rig: Rig, name: str, files: int) -> float:
    """Returns the time of the loop over that of the pipeline, each over a tree of its own."""
    for kind, seed in (("loop", 1), ("pipe", 2)):
        draw = sum(map(ord, name)) * 10 + seed
        write_tree(rig.roots / f"{name}-{kind}", files=files, functions=_FUNCTIONS, seed=draw)
    rig.create(f"{name}-pipe", f"{name}-pipe")
    pipeline, _ = rig.index(f"{name}-pipe")
    rig.indexer.kill()  # so that it does not take the run that is made by hand
    sequential = asyncio.run(_index_in_a_loop(rig, f"{name}-loop"))
    rig.indexer.start()
    return sequential / pipeline


async def _index_in_a_loop(rig: Rig, name: str) -> float:
    database = Database(rig.url, connections=4, timeout_seconds=120)
    await database.open()
    stores = replica(database)
    channels = [connect(rig.io.address), connect(rig.embed.address)]
    io, embed = IoClient(channels[0], 120), EmbedClient(channels[1], 120)
    tree = Tree(ROOT, name)
    remote = await embed.model("")
    workspace, _ = await stores.workspaces.create(name, tree, "")
    started = time.perf_counter()
    await stores.ledger.create(workspace.id, uuid.uuid4(), RunSpec(), IfRunning.JOIN)
    run = await stores.take()
    model = await stores.workspaces.register_model(remote)
    await stores.workspaces.activate(run, model, stores.ledger)
    loop = _Loop(stores, io, embed, run, tree, model, remote)
    await loop.plan()
    while claimed := await stores.nodes.claim(run, _EMBED_NODES):
        await loop.embed_batch(claimed)
    await stores.ledger.finish(run, None)
    seconds = time.perf_counter() - started
    for channel in channels:
        await channel.close()
    await database.close()
    return seconds


@dataclass(frozen=True, slots=True)
class _Loop:
    """The stages of a run, each begun when the one before it has ended."""

    stores: Replica
    io: IoClient
    embed: EmbedClient
    run: Run
    tree: Tree
    model: RegisteredModel
    remote: EmbedModel

    async def plan(self) -> None:
        """Scans the tree, then parses it batch by batch."""
        recipe = await self.io.recipe()
        paths = [item.path async for batch in self.io.scan(self.tree, ()) for item in batch.files]
        for start in range(0, len(paths), _PARSE_FILES):
            files = [(path, b"") for path in paths[start : start + _PARSE_FILES]]
            outcomes = await self.io.parse(self.tree, files, self.model.max_tokens)
            parsed = [item.parsed for item in outcomes if item.parsed is not None]
            await self.stores.files.apply(self.run, self.model.id, recipe, parsed, 0.0)

    async def embed_batch(self, claimed: list[ClaimedNode]) -> None:
        """Fetches, embeds and commits what was claimed."""
        left = await self.stores.nodes.adopt(self.run, self.model.id, claimed)
        ready = [node for node in claimed if node.id in left]
        nodes = list({node.content_hash: node for node in ready}.values())
        texts = await self.io.read_contents(self.tree, nodes)
        told = [text for text in texts if not isinstance(text, Failure)]
        assert len(told) == len(texts)
        contents = {}
        vectors = await self.embed.embed_documents(self.remote, told)
        for node, text, vector in zip(nodes, told, vectors, strict=True):
            assert isinstance(vector, Vector)
            terms = content_terms(text)
            contents[node.content_hash] = EmbeddedContent(
                node.content_hash, vector.values, vector.token_count, vector.truncated, terms
            )
        await self.stores.nodes.complete(self.run, self.model.id, contents, ready, {})


def _small_changes(rig: Rig, scratch: Path) -> dict[str, dict[str, Any]]:
    files, name = 1_000, "hashing-1000-0-pipe"
    unchanged = statistics.median(rig.index(name)[0] for _ in range(_UNCHANGED_ROUNDS))
    path = file_path(scratch / name, 1)
    path.write_text(path.read_text("utf-8").replace("if not ", "if None is ", 1), encoding="utf-8")
    seconds, row = rig.index(name)
    return {
        "unchanged_microseconds_per_file": figure(unchanged / files * 1e6),
        "one_statement_edited_forwards": figure(row["forwards"], 1, met=row["forwards"] == 1),
        "one_statement_edited_seconds": figure(seconds),
    }


if __name__ == "__main__":
    print_measured(measure)
