"""A check holds rows of files to what a parse gives, and a repair parses those files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.indexer.storage import marks as marks_module
from tests.integration.checks import NODE, check_index, damage_rows, indexed_tree
from tests.integration.indexing import Mode, State
from tests.integration.oracle import check
from tests.integration.samples import edit, write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.hooks import Hook
    from tests.integration.indexing import Indexing

FILE_DAMAGES = {
    "a node is gone": "DELETE FROM nodes WHERE qualified_name = 'parse_body'",
    "a node stands elsewhere": "UPDATE nodes SET end_byte = end_byte + 1 WHERE "
    "qualified_name = 'parse_body'",
    "a node has another name": "UPDATE nodes SET qualified_name = 'x' WHERE "
    "qualified_name = 'parse_body'",
    "a node is of an old generation": "UPDATE nodes SET generation = 99 WHERE "
    "qualified_name = 'parse_body'",
}
_METHOD = "(SELECT id FROM nodes WHERE qualified_name = 'Router.add_route')"
_ONE_MORE = f"""
INSERT INTO node_references
SELECT workspace_id, node_id, 999, file_id, kind, name, qualifier, alias, line
FROM node_references WHERE node_id = {NODE} LIMIT 1
"""
ROW_DAMAGES = {
    "file_wrong": [
        "UPDATE files SET language = 'rust' WHERE path = 'app.py'",
    ],
    "parents_wrong": [
        f"UPDATE nodes SET parent_id = NULL WHERE id = {_METHOD}",
        f"UPDATE nodes SET parent_id = {NODE} WHERE id = {_METHOD}",
    ],
    "references_wrong": [
        f"DELETE FROM node_references WHERE node_id = {NODE}",
        f"UPDATE node_references SET node_id = {_METHOD} WHERE node_id = {NODE}",
        _ONE_MORE,
    ],
}


@pytest.fixture
async def services(
    roots: Path, sockets: Path, migrated_url: str, hook: Hook
) -> AsyncIterator[Indexing]:
    """Services with an indexed tree."""
    async with indexed_tree(roots, sockets, migrated_url, hook) as running:
        yield running


@pytest.mark.parametrize("statement", FILE_DAMAGES.values(), ids=FILE_DAMAGES)
async def test_nodes_that_are_not_those_of_the_file_are_cut_again(
    services: Indexing, hook: Hook, statement: str
) -> None:
    await damage_rows(services, statement)

    found = await check_index(services, mark=True)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert ("nodes_differ", "app.py", "") in found
    assert {path for _, path, _ in found} == {"app.py"}
    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.files_parsed == 1
    assert hook.texts == [], "the cache holds the text"
    assert await check_index(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


async def test_rows_of_a_file_that_its_text_does_not_give_are_written_anew_without_a_forward(
    services: Indexing, hook: Hook
) -> None:
    """Red with a check that looks at the nodes alone."""
    damages = [(kind, damage) for kind, some in ROW_DAMAGES.items() for damage in some]
    for kind, damage in damages:
        await damage_rows(services, damage)

        found = await check_index(services, mark=True)
        repaired = await services.run("tree", Mode.MODE_REPAIR)

        assert found == [(kind, "app.py", "")], damage
        assert repaired.state == State.STATE_SUCCEEDED
        assert repaired.progress.files_parsed == 1
        assert await check_index(services) == [], damage
    assert hook.texts == []
    await check(services, "tree", "tree")


async def test_files_that_changed_or_went_are_found_and_looked_at_alone(
    services: Indexing, hook: Hook, roots: Path
) -> None:
    edit(roots / "tree" / "app.py", "json.loads(raw)", "json.loads(raw.strip())")
    (roots / "tree" / "web" / "price.js").unlink()
    write_tree(roots / "tree" / "new")

    found = await check_index(services, mark=True)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert found == [
        ("file_changed", "app.py", ""),
        ("file_gone", "web/price.js", ""),
        *(
            ("file_missing", f"new/{path}", "")
            for path in ("app.py", "db/store.py", "web/price.js")
        ),
    ]
    assert repaired.progress.files_parsed == 4
    assert repaired.progress.nodes_removed >= 2
    assert len(hook.texts) == 1
    assert await check_index(services) == []


async def test_a_repair_tells_that_more_files_are_marked_than_it_looks_at(
    services: Indexing, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when it told success: files were left as they were, and nobody knew."""
    monkeypatch.setattr(marks_module, "MOST_MARKED_FILES", 1)
    edit(roots / "tree" / "app.py", "json.loads(raw)", "json.loads(raw.strip())")
    (roots / "tree" / "web" / "price.js").unlink()
    await check_index(services, mark=True)

    first = await services.run("tree", Mode.MODE_REPAIR)
    second = await services.run("tree", Mode.MODE_REPAIR)

    assert first.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    assert list(first.warnings) == ["More than 1 files are marked: another repair run is needed."]
    assert second.state == State.STATE_SUCCEEDED
    assert await check_index(services) == []


async def test_a_file_whose_row_was_lost_is_found_and_read_again(
    services: Indexing, hook: Hook
) -> None:
    """Red with a check that walks known files alone, and with one that marks no path."""
    await damage_rows(services, "DELETE FROM files WHERE path = 'app.py'")

    found = await check_index(services, mark=True)
    repaired = await services.run("tree", Mode.MODE_REPAIR)

    assert ("file_missing", "app.py", "") in found
    assert {path for _, path, _ in found} == {"app.py"}
    assert repaired.state == State.STATE_SUCCEEDED
    assert repaired.progress.files_parsed == 1
    assert hook.texts == [], "the cache holds the texts"
    assert await check_index(services, sample_ratio=1.0) == []
    await check(services, "tree", "tree")


async def test_what_the_last_run_left_out_is_not_missing(services: Indexing) -> None:
    """Red with a check that scans without what the last run excluded."""
    run = await services.run("tree", exclude=["web/**"])

    assert run.state == State.STATE_SUCCEEDED
    assert run.progress.nodes_removed > 0
    assert await check_index(services) == []
