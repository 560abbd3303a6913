"""A workspace whose nodes have terms drawn at random, with blocks of postings or without."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.indexer.model import EmbeddedContent
from services.indexer.search.model import SearchFilter
from services.indexer.storage.search import SearchStore
from services.indexer.storage.term_blocks import TermBlocks
from services.indexer.storage.term_index import TermIndex
from tests.integration.replicas import (
    DIMENSIONS,
    Replica,
    parsed_file,
    replica,
    workspace_with_model,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.indexer.model import ParsedFile, RegisteredModel, Workspace
    from services.indexer.run import Run
    from services.indexer.storage.database import Database
    from services.indexer.storage.search import Scored

_ALL = SearchFilter()
_VOCABULARY = [f"word{number}" for number in range(40)]
FILES, _NODES_OF_FILE = 40, 10


class Corpus:
    """A workspace whose nodes have terms drawn at random, the first words more often."""

    def __init__(self, stores: Replica, workspace: Workspace, model: RegisteredModel) -> None:
        self.stores = stores
        self.workspace = workspace
        self._model = model
        self._random = random.Random(5)
        self._texts: dict[str, list[str]] = {}

    async def write(self, paths: Sequence[str]) -> None:
        """Makes a run that gives files nodes of new texts, in the place of what they had."""
        run = await self._begun()
        await self.stores.apply(run, self._model, *map(self._file, paths))
        while nodes := await self.stores.nodes.claim(run, 128):
            contents = {node.content_hash: self._content(node.content_hash) for node in nodes}
            await self.stores.nodes.complete(run, self._model.id, contents, nodes, {})
        await self.stores.ledger.finish(run, None)

    async def begin(self, path: str) -> Run:
        """Begins a run that finds a file whose nodes then wait."""
        run = await self._begun()
        await self.stores.apply(run, self._model, self._file(path))
        return run

    async def rename(self, path: str) -> None:
        """Makes a run that finds a file's nodes, whose texts are the same, under other names."""
        run = await self._begun()
        file = parsed_file(path, *self._texts[path])
        nodes = tuple(replace(node, qualified_name="word39") for node in file.nodes)
        await self.stores.apply(run, self._model, replace(file, nodes=nodes))
        await self.stores.ledger.finish(run, None)

    async def remove(self, paths: Sequence[str]) -> None:
        """Makes a run that finds files gone."""
        run = await self._begun()
        await self.stores.files.remove(run, paths)
        await self.stores.ledger.finish(run, None)

    async def held_to_sql(
        self, only: SearchFilter = _ALL, limit: int = 50, *, blocks: TermBlocks | None = None
    ) -> None:
        """Asks both ways the same, and holds the blocks to what SQL finds.

        Without `blocks`, by one who knows nothing of them yet.
        """
        database = self.stores.database
        blocks = blocks or TermBlocks(database)
        by_sql, by_blocks = SearchStore(database), SearchStore(database, None, blocks)
        for size in (1, 2, 4, 8):
            terms = ["word39", *self._random.sample([*_VOCABULARY[:-1], "absent", "py"], size - 1)]
            expected = await by_sql.lexical(self.workspace.id, terms, only, 10_000)
            found = await by_blocks.lexical(self.workspace.id, terms, only, limit)
            same(expected, found, limit)
        assert await blocks.candidates(self.workspace.id, ["word1"]) is not None

    async def _begun(self) -> Run:
        await self.stores.queue(self.workspace)
        return await self.stores.take()

    def _file(self, path: str) -> ParsedFile:
        texts = [f"text{self._random.randrange(1 << 40)}" for _ in range(_NODES_OF_FILE)]
        self._texts[path] = texts
        return parsed_file(path, *texts)

    def _content(self, text_hash: bytes) -> EmbeddedContent:
        drawn = [int(self._random.paretovariate(0.8)) for _ in range(self._random.randint(1, 30))]
        terms = {f"word{number - 1}": self._random.randint(1, 5) for number in drawn}
        vector = bytes([0, 0x3C]) * DIMENSIONS
        return EmbeddedContent(text_hash, vector, 3, truncated=False, terms=terms)


def same(expected: Sequence[Scored], found: Sequence[Scored], limit: int) -> None:
    """Holds what blocks find to all that SQL does: impacts are rounded, and the mean may drift."""
    scores = {item.node_id: item.score for item in expected}
    assert len(found) == min(limit, len(expected))
    assert [item.score for item in found] == pytest.approx(
        [item.score for item in expected[: len(found)]], rel=0.03
    )
    assert {item.node_id: item.score for item in found} == pytest.approx(
        {item.node_id: scores[item.node_id] for item in found}, rel=0.03
    )


async def filled(database: Database) -> Corpus:
    """Returns a workspace with nodes, and no blocks yet."""
    stores = replica(database)
    workspace, model = await workspace_with_model(stores)
    made = Corpus(stores, workspace, model)
    await made.write([f"f{number}.py" for number in range(FILES)])
    return made


def index(corpus: Corpus, **options: Any) -> TermIndex:
    """Returns what makes blocks of that few nodes."""
    limits = {"least_nodes": 100, "least_changed": 60, "block_nodes": 64, **options}
    return TermIndex(corpus.stores.database, **limits)
