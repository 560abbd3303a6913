"""Postings are held to the terms that they were made of, and counted where they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from services.indexer.model import ModelId
from services.indexer.storage.marks import Disagreement, Mark, MarkStore, put_back
from services.indexer.storage.postings_truth import PostingsTruth
from tests.integration.term_corpus import Corpus, filled, index

if TYPE_CHECKING:
    from services.indexer.storage.database import Database

_BLOCK = "(SELECT min(id) FROM term_blocks)"
_FIRST = "(SELECT min(node_id) FROM node_terms)"
_TERM = f"term = (SELECT terms[1] FROM node_terms WHERE node_id = {_FIRST})"
_ENTRIES = f"UPDATE term_postings SET entries = %s WHERE {_TERM} AND block_id = {_BLOCK}"
_UNNOTED = "SET lodestone.notes_changes = 'on'"

DAMAGES = {
    "an impact": (_ENTRIES % "set_byte(entries, 3, 1 + (get_byte(entries, 3) + 7) % 250)", 1),
    "a place": (_ENTRIES % "entries || substr(entries, 1, 4)", 1),
    "a place that no node has": (_ENTRIES % r"entries || '\x7fff0001'", 1),
    "half an entry": (_ENTRIES % r"entries || '\x0001'", 1),
    "an entry that is gone": (_ENTRIES % "substr(entries, 5)", 1),
    "a count": (f"UPDATE node_terms SET counts[1] = counts[1] + 9 WHERE node_id = {_FIRST}", 1),
    "a length": (f"UPDATE node_terms SET length = length + 9 WHERE node_id = {_FIRST}", 1),
    "a term of a name": (
        f"UPDATE node_terms SET name_terms = name_terms || '{{odd}}' WHERE node_id = {_FIRST}",
        1,
    ),
    "a term of some nodes": (
        (
            "UPDATE node_terms SET terms = array_append(terms, 'odd'), "
            "counts = array_append(counts, 1) WHERE node_id % 5 = 0"
        ),
        80,
    ),
    "nodes that blocks have": ("DELETE FROM node_terms WHERE node_id % 4 = 0", 100),
    "nodes that blocks lack": (
        (
            "INSERT INTO node_terms SELECT workspace_id, id, 1, '{a}', '{1}', 1, '{}' FROM nodes "
            "WHERE status = 'pending'"
        ),
        10,
    ),
    "a block that is gone": (f"DELETE FROM term_blocks WHERE id = {_BLOCK}", 64),
    "a block that is there twice": (
        (
            "WITH copied AS (INSERT INTO term_postings SELECT workspace_id, term, 1000, entries "
            f"FROM term_postings WHERE block_id = {_BLOCK}) "
            "INSERT INTO term_blocks SELECT workspace_id, 1000, recipe, first_node, nodes, "
            f"mean_length, node_ids FROM term_blocks WHERE id = {_BLOCK}"
        ),
        64,
    ),
    "ids of another block": (
        (
            "UPDATE term_blocks SET node_ids = (SELECT node_ids FROM term_blocks "
            f"WHERE id = {_BLOCK} + 1) WHERE id = {_BLOCK}"
        ),
        128,
    ),
}


@pytest.fixture
async def corpus(database: Database) -> Corpus:
    """A workspace with blocks of postings."""
    made = await filled(database)
    assert await index(made).step() == 1
    return made


async def _wrong(corpus: Corpus) -> int:
    compared = PostingsTruth(corpus.stores.database).compare(corpus.workspace.id)
    return sum([found.mark.nodes async for found in compared if found.mark is not None])


async def _damage(corpus: Corpus, *statements: str) -> None:
    connection = await asyncpg.connect(corpus.stores.database._url)
    for statement in statements:
        assert not (await connection.execute(statement)).endswith(" 0"), statement
    await connection.close()


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_differs_is_counted_by_node(corpus: Corpus, damage: str) -> None:
    """Each kind of damage, by SQL.

    Planted once: flags by term alone; nodes of the span that the block lacks left out; nodes
    beyond its span let pass.
    """
    statement, nodes = DAMAGES[damage]
    if damage == "nodes that blocks lack":
        await corpus.begin("late.py")
    assert await _wrong(corpus) == 0

    await _damage(corpus, _UNNOTED, statement)

    assert await _wrong(corpus) == nodes


async def test_a_page_is_a_block_and_names_a_node_that_is_there(corpus: Corpus) -> None:
    await _damage(corpus, _UNNOTED, f"DELETE FROM nodes WHERE id = {_FIRST}")

    found = [
        item async for item in PostingsTruth(corpus.stores.database).compare(corpus.workspace.id)
    ]
    assert [item.nodes for item in found] == [64] * 6 + [16]
    assert found[0].mark == Mark("", Disagreement.POSTINGS_WRONG, nodes=1)

    await _damage(corpus, _UNNOTED, "UPDATE node_terms SET length = length + 3")
    marks = [
        item.mark
        async for item in PostingsTruth(corpus.stores.database).compare(corpus.workspace.id)
    ]
    assert [mark.nodes for mark in marks if mark is not None] == [64] * 6 + [16]
    assert all(mark is not None and mark.path.endswith(".py") for mark in marks)


async def test_what_is_noted_as_changed_does_not_differ(corpus: Corpus) -> None:
    """Planted once: notes not left out. Searches read what is noted from its terms."""
    await corpus.write(["f3.py", "new.py"])
    await corpus.remove(["f7.py"])
    await corpus.rename("f30.py")
    assert await corpus.stores.value("SELECT count(*) FROM term_changes") > 0

    assert await _wrong(corpus) == 0

    await _damage(corpus, "DELETE FROM term_changes")
    assert await _wrong(corpus) == 10 + 10 + 10 + 10 + 10


async def test_marked_blocks_are_not_read_until_they_are_made_anew(corpus: Corpus) -> None:
    """Planted once: blocks that keep their recipe; postings of a lost block that stay."""
    stores = corpus.stores
    await _damage(
        corpus,
        _UNNOTED,
        f"DELETE FROM term_blocks WHERE id = {_BLOCK} + 1",
        "UPDATE term_postings SET entries = substr(entries, 5) WHERE length(entries) > 4",
    )
    marks = MarkStore(stores.database)
    compared = PostingsTruth(stores.database).compare(corpus.workspace.id)
    found = [item.mark async for item in compared if item.mark is not None]
    await marks.mark(corpus.workspace.id, found)
    assert await stores.value("SELECT count(*) FROM index_marks") == 1
    assert await marks.marked_files(corpus.workspace.id) == ({}, [])

    async with stores.database.transaction() as connection:
        assert await put_back(connection, corpus.workspace.id, ModelId(1)) == []
    assert await stores.value("SELECT count(*) FROM index_marks") == 0
    assert await _wrong(corpus) == 0, "they are not read"
    with pytest.raises(AssertionError, match="is not None"):
        await corpus.held_to_sql()

    assert await index(corpus).step() == 1
    assert await _wrong(corpus) == 0
    await corpus.held_to_sql()
    assert await stores.value("SELECT count(DISTINCT block_id) FROM term_postings") == 7
