"""Blocks of postings find what SQL over the terms finds, whatever changed since they were made."""

from __future__ import annotations

import asyncio
import random
import re
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from services.indexer.search.model import SearchFilter
from services.indexer.storage import search, term_blocks
from services.indexer.storage.search import PASSING, SearchStore, _filter_sql
from services.indexer.storage.term_blocks import READ, TermBlocks
from services.indexer.storage.term_index import spans_of
from tests.integration.replicas import until_waiting
from tests.integration.term_corpus import FILES, Corpus, filled, index, same
from tests.support.invariants import broken_rules

if TYPE_CHECKING:
    from services.indexer.storage.database import Database

_ALL = SearchFilter()
_FILL = """
WITH made AS (INSERT INTO nodes (workspace_id, id, file_id, generation, ordinal, kind,
  qualified_name, start_byte, end_byte, start_line, end_line, part, part_count, token_estimate,
  content_hash, status)
SELECT 1, nextval('node_ids'), (SELECT min(id) FROM files), 1, 100 + i, 'function', 'n' || i, 0, 1,
  1, 1, 0, 1, 1, decode(lpad(to_hex(i), 64, '0'), 'hex'), 'embedded'
FROM generate_series(1, 20000) i RETURNING id)
INSERT INTO node_terms SELECT 1, id, 1, '{word1}', '{1}', 1, '{word2}' FROM made;
INSERT INTO term_postings SELECT 1, 'other' || i, 1, '' FROM generate_series(1, 20000) i;
ANALYZE nodes, node_terms, term_postings, term_blocks, term_changes
"""


@pytest.fixture
async def corpus(database: Database) -> Corpus:
    """A workspace with nodes, and no blocks yet."""
    return await filled(database)


@pytest.mark.parametrize(("block_nodes", "blocks"), [(64, 7), (1000, 1)])
async def test_blocks_find_what_sql_finds_before_and_after_changes(
    corpus: Corpus, block_nodes: int, blocks: int
) -> None:
    """Changes are noted, blocks made anew where they are.

    Planted once, each for itself: a note left out of a commit, of a removal, of a rename; blocks
    that are not made anew though their notes go.
    """
    stores = corpus.stores
    terms = index(corpus, block_nodes=block_nodes)
    assert await terms.step() == 1
    assert await terms.step() == 0
    assert await stores.value("SELECT count(*) FROM term_blocks") == blocks
    await corpus.held_to_sql()

    await corpus.write(["f3.py", "f20.py", "new.py"])
    await corpus.remove(["f7.py"])
    await corpus.rename("f30.py")
    assert await stores.value("SELECT count(*) FROM term_changes") > 0
    await corpus.held_to_sql()

    assert await terms.step() == 1
    assert await stores.value("SELECT count(*) FROM term_changes") == 0
    await corpus.held_to_sql()
    assert await broken_rules(stores.database._url) == []


@pytest.mark.parametrize("seed", range(3))
async def test_who_keeps_what_was_noted_finds_what_sql_finds_after_any_changes(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Planted once: terms of a node that a newer note is of, or of one that is gone, kept."""
    monkeypatch.setattr(term_blocks, "_READ_AT_ONCE", 15)
    drawn = random.Random(seed)
    blocks = TermBlocks(corpus.stores.database)
    terms = index(corpus, least_changed=90)
    assert await terms.step() == 1
    files = [f"f{number}.py" for number in range(FILES)]
    for _ in range(15):
        file = drawn.choice(files)
        step = drawn.randrange(5)
        if step < 2:
            await corpus.write([file, drawn.choice(files)])
        elif step == 2:
            await corpus.remove([file])
            await corpus.write([file] if drawn.random() < 0.5 else [])
        elif step == 3:
            await corpus.rename(file)
        else:
            await terms.step()
        if drawn.random() < 0.8:
            await corpus.held_to_sql(blocks=blocks)


async def test_what_is_noted_is_read_once_and_in_pieces(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted once: notes that are known and read again; a search that goes on with some alone."""
    monkeypatch.setattr(term_blocks, "_READ_AT_ONCE", 15)
    read: list[int] = []
    terms_of = term_blocks._terms_of

    def told(row: Any) -> Any:
        read.append(row["node"])
        return terms_of(row)

    monkeypatch.setattr(term_blocks, "_terms_of", told)
    blocks = TermBlocks(corpus.stores.database)
    await index(corpus).step()
    for number in range(3, 15):
        await corpus.write([f"f{number}.py"])
    await corpus.held_to_sql(blocks=blocks)
    first = len(read)
    await corpus.held_to_sql(blocks=blocks)
    assert first == len(read) == 12 * 20

    await corpus.write(["f3.py"])
    await corpus.held_to_sql(blocks=blocks)
    assert len(read) == first + 20, "what went and what came"

    await index(corpus, least_changed=1).step()
    await corpus.held_to_sql(blocks=blocks)
    assert len(blocks._noted[corpus.workspace.id].nodes) == 0


async def test_no_more_is_kept_of_notes_than_its_bound(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted once: notes of all workspaces kept."""
    monkeypatch.setattr(term_blocks, "_MOST_KEPT_NOTES", 10)
    blocks = TermBlocks(corpus.stores.database)
    await index(corpus).step()
    await corpus.write(["f3.py"])

    await corpus.held_to_sql(blocks=blocks)

    assert sum(len(noted.nodes) for noted in blocks._noted.values()) <= 10


async def test_a_filter_misses_nothing_because_of_the_blocks(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted once: a filter that sees the first piece alone."""
    monkeypatch.setattr(search, "_FIRST_PIECE", 4)
    await index(corpus).step()
    rare = SearchFilter(paths=("f1.py", "f39.py"))

    await corpus.held_to_sql(rare, limit=5)
    await corpus.held_to_sql(SearchFilter(languages=("python",)), limit=10)
    await corpus.held_to_sql(SearchFilter(languages=("cobol",)))


async def test_what_changes_while_blocks_are_made_stays_noted(corpus: Corpus) -> None:
    """Planted once: a transaction that removes notes which it did not see when it began."""
    stores = corpus.stores
    async with stores.database.transaction() as connection:
        await connection.execute("LOCK TABLE term_blocks IN SHARE MODE")
        making = asyncio.create_task(index(corpus).step())
        await until_waiting(stores.value)
        await corpus.write(["late.py"])
        await corpus.remove(["f5.py"])
    assert await making == 1

    assert await stores.value("SELECT count(*) FROM term_changes") > 0
    await corpus.held_to_sql()


async def test_nothing_is_made_of_few_nodes_during_a_run_or_by_two_at_once(corpus: Corpus) -> None:
    stores = corpus.stores
    assert await index(corpus, least_nodes=0).step() == 0
    await stores.queue(corpus.workspace)
    assert await index(corpus).step() == 0
    await stores.ledger.finish(await stores.take(), None)

    assert sum(await asyncio.gather(*(index(corpus).step() for _ in range(2)))) == 1

    await corpus.remove([f"f{number}.py" for number in range(FILES - 5)])
    assert await index(corpus).step() == 1
    assert await stores.value("SELECT count(*) FROM term_blocks") == 0
    assert await stores.value("SELECT count(*) FROM term_postings") == 0


@pytest.mark.parametrize("least_nodes", [0, 10_000])
async def test_a_workspace_without_blocks_keeps_few_notes(corpus: Corpus, least_nodes: int) -> None:
    """Red where nothing is looked at that is to have no blocks: each edit is noted for ever."""
    stores = corpus.stores
    noted = "SELECT count(*) FROM term_changes"
    assert await index(corpus, least_nodes=least_nodes, most_noted=10_000).step() == 0
    assert await stores.value(noted) > 0

    assert await index(corpus, least_nodes=least_nodes, most_noted=100).step() == 1
    assert await stores.value(noted) == 0
    assert await index(corpus, least_nodes=least_nodes, most_noted=100).step() == 0
    assert await stores.value("SELECT count(*) FROM term_blocks") == 0


async def test_blocks_go_when_none_are_wanted_any_more(corpus: Corpus) -> None:
    stores = corpus.stores
    assert await index(corpus).step() == 1

    await corpus.write([f"f{number}.py" for number in range(5)])

    assert await index(corpus, least_nodes=0, least_changed=10).step() == 1
    assert await stores.value("SELECT count(*) FROM term_blocks") == 0
    assert await stores.value("SELECT count(*) FROM term_postings") == 0


async def test_what_others_write_the_database_notes(corpus: Corpus) -> None:
    """As the version before does during a roll-over; planted once: a trigger for updates alone."""
    await index(corpus).step()
    connection = await asyncpg.connect(corpus.stores.database._url)
    await connection.execute(
        """
        UPDATE node_terms SET terms = '{word39,word1}', counts = '{3,1}' WHERE node_id % 7 = 0;
        DELETE FROM nodes WHERE id % 7 = 1
        """
    )
    await connection.close()

    await corpus.held_to_sql()


async def test_a_deleted_workspace_leaves_no_postings_and_no_notes(corpus: Corpus) -> None:
    await index(corpus).step()
    await corpus.write(["f1.py"])

    await corpus.stores.workspaces.delete(corpus.workspace.name)

    for table in ("term_blocks", "term_postings", "term_changes"):
        assert await corpus.stores.value(f"SELECT count(*) FROM {table}") == 0, table


async def test_blocks_that_are_replaced_while_they_are_read_are_read_again(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of a block's nodes come by a second statement: the block may be gone by then."""
    stores = corpus.stores
    await index(corpus).step()
    blocks = TermBlocks(stores.database)
    nodes_of = blocks._nodes_of
    tries = []

    async def replaced(*arguments: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            await corpus.write([f"f{number}.py" for number in range(0, FILES, 2)])
            assert await index(corpus).step() == 1
        return await nodes_of(*arguments)

    monkeypatch.setattr(blocks, "_nodes_of", replaced)
    store = SearchStore(stores.database, None, blocks)

    found = await store.lexical(corpus.workspace.id, ["word3", "word8"], _ALL, 50)

    assert len(tries) == 2
    expected = await SearchStore(stores.database).lexical(
        corpus.workspace.id, ["word3", "word8"], _ALL, 10_000
    )
    same(expected, found, 50)


async def test_a_search_reads_the_postings_of_its_terms_and_what_changed_alone(
    corpus: Corpus,
) -> None:
    """On 20,000 nodes and as many terms; planted once: postings without their primary key."""
    stores = corpus.stores
    await index(corpus).step()
    await corpus.write(["f1.py"])
    async with stores.database.connection() as connection:
        await connection.execute(_FILL)
        for mode in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET plan_cache_mode = {mode}")
            for sql, types, arguments in (
                (
                    READ.format(table="node_terms_w1"),
                    "int, text[], bigint[], int",
                    "1, '{word1,word2}', '{}', 500",
                ),
                (
                    PASSING.format(filter=_filter_sql(SearchFilter(kinds=("function",)), 4)),
                    "int, bigint[], int, text[], text[], text[], text, timestamptz",
                    "1, '{1,2}', 10, '{function}', '{}', '{}', NULL, NULL",
                ),
            ):
                await connection.execute(f"PREPARE asked ({types}) AS {sql}")
                rows = await connection.fetch(f"EXPLAIN EXECUTE asked ({arguments})")
                await connection.execute("DEALLOCATE asked")
                plan = "\n".join(row[0] for row in rows)
                assert not re.search(r"Seq Scan on (term_postings|node_terms|nodes|files)", plan), (
                    plan
                )
        await connection.execute("RESET plan_cache_mode")


def test_spans_join_neighbours_and_reach_to_the_ends() -> None:
    blocks = [{"id": number, "first_node": number * 100} for number in range(1, 6)]

    spans = spans_of(blocks, [0, 1, 3, 4])

    assert [span.blocks for span in spans] == [(1, 2), (4, 5)]
    assert (spans[0].last, spans[1].first) == (300, 400)
    assert spans[0].first < 0 < (1 << 62) < spans[1].last
