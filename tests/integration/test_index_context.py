"""Contexts, lines of files, and the client, against all services and a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from blake3 import blake3

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from services.indexer.context.tokens import estimate_tokens
from tests.integration.samples import edit, write_many, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.indexing import Indexing

_FRESHNESS = search_pb2.NodeHit


@pytest.fixture
async def tree(services: Indexing, roots: Path) -> Path:
    """A tree that is indexed."""
    folder = write_tree(roots / "tree", copy_py="def parse_body(raw):\n    return raw\n")
    write_tree(roots / "tree" / "again")  # every file twice
    write_many(folder / "many", 40, per_file=8)
    await services.create("tree", "tree")
    await services.succeed("tree")
    return folder


async def _context(
    services: Indexing, query: str, budget: int, *, signatures: bool = False, **search: Any
) -> search_pb2.BuildContextResponse:
    request = search_pb2.BuildContextRequest(
        search=search_pb2.SearchNodesRequest(parent="workspaces/tree", query=query, **search),
        token_budget=budget,
        allow_signatures=signatures,
    )
    response: search_pb2.BuildContextResponse = await services.searches.BuildContext(request)
    return response


async def _lines(services: Indexing, path: str, start: int = 0, end: int = 0) -> Any:
    return await services.searches.ReadLines(
        search_pb2.ReadLinesRequest(
            parent="workspaces/tree", path=path, start_line=start, end_line=end
        )
    )


@pytest.mark.parametrize("budget", [1, 12, 100, 300, 2000])
async def test_a_context_keeps_its_budget_and_cites_what_files_hold(
    services: Indexing, tree: Path, budget: int
) -> None:
    found = await _context(services, "parse json body", budget, signatures=True, page_size=1000)

    assert found.tokens == estimate_tokens(found.text) <= budget
    for piece in found.pieces:
        data = (tree / piece.path).read_bytes()
        quoted = data[piece.start_byte : piece.end_byte].decode()
        assert f"\n{quoted}\n```" in found.text
        assert f"{piece.path}:{piece.start_line}-{piece.end_line}" in found.text
        lines = data.decode().split("\n")[piece.start_line - 1 : piece.end_line]
        assert piece.file_digest == blake3(data).digest()
        assert quoted == "\n".join(lines)  # whole lines, the first with its indentation
    assert bool(found.pieces) == (budget >= 100)


async def test_each_text_is_given_once(services: Indexing, tree: Path) -> None:
    """Red when a context does not look for copies: each file lies in the tree twice."""
    found = await _context(services, "open database url", 5000, page_size=1000)

    assert found.text.count("def open_database(url):") == 1
    assert found.text.count("def find_handler(self, path):") == 1
    assert found.duplicates > 3
    hits = [hit.node_id for hit in found.hits]
    assert len(hits) == len(set(hits))
    assert hits == [node for piece in found.pieces for node in piece.node_ids]


async def test_what_changed_since_is_left_out_and_counted(services: Indexing, tree: Path) -> None:
    edit(tree / "db/store.py", "timeout=3", "timeout=canary")
    edit(tree / "again/db/store.py", "timeout=3", "timeout=canary")
    (tree / "copy.py").unlink()

    found = await _context(services, "open database url", 5000, page_size=1000)

    assert "canary" not in found.text
    assert "open_database" not in found.text
    assert {"db/store.py", "copy.py"}.isdisjoint(piece.path for piece in found.pieces)
    assert found.stale == 5


async def test_characters_before_a_piece_do_not_matter(services: Indexing, roots: Path) -> None:
    """A look at what is before a piece may begin inside of a character."""
    for size in range(1, 5):
        text = "# " + "é" * 70 + "漢" * size + "\n\n\ndef find_me():\n    return 1\n"
        write_tree(roots / "wide", **{f"wide{size}_py": text})
    await services.create("tree", "wide")
    await services.succeed("tree")

    found = await _context(services, "find_me", 5000)

    assert sum(piece.path.startswith("wide") for piece in found.pieces) == 1
    assert found.duplicates == 3
    assert found.stale == 0


async def test_a_context_takes_filters_and_refuses_pages(services: Indexing, tree: Path) -> None:
    only = search_pb2.SearchFilter(languages=["javascript"])
    found = await _context(services, "price", 500, filter=only)
    assert {piece.path for piece in found.pieces} <= {"web/price.js", "again/web/price.js"}

    with pytest.raises(grpc.aio.AioRpcError, match="pages") as caught:
        await _context(services, "price", 500, page_token="x")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_context_of_several_workspaces_names_them(
    services: Indexing, tree: Path, roots: Path
) -> None:
    """Files of one path in two trees are two: their pieces neither join nor hide each other.

    Planted once: files told apart by their path alone; texts read from the first tree.
    """
    other = roots / "other"
    (other / "db").mkdir(parents=True)
    (other / "db/store.py").write_text(
        "def close_database(handle):\n    handle.end()\n\n\n"
        "def open_database(url):\n    return url\n"
    )
    await services.create("other", "other")
    await services.succeed("other")
    several = ["workspaces/other", "workspaces/tree"]

    found = await _context(
        services, "open close database", 5000, page_size=1000, other_parents=several
    )

    assert found.tokens == estimate_tokens(found.text)
    assert {"workspaces/tree", "workspaces/other"} == {piece.workspace for piece in found.pieces}
    for piece in found.pieces:
        name = piece.workspace.removeprefix("workspaces/")
        data = (roots / name / piece.path).read_bytes()
        quoted = data[piece.start_byte : piece.end_byte].decode()
        assert f"[{name}] {piece.path}:{piece.start_line}-{piece.end_line}" in found.text
        assert f"\n{quoted}\n```" in found.text
    assert "handle.end()" in found.text
    assert "connection.rollback()" in found.text
    assert {hit.workspace for hit in found.hits} == {"workspaces/tree", "workspaces/other"}
    alone = await _context(services, "open close database", 5000)
    assert "[tree]" not in alone.text
    assert {piece.workspace for piece in alone.pieces} == {"workspaces/tree"}


async def test_hits_tell_where_their_texts_match(services: Indexing, tree: Path) -> None:
    hits = await services.search("tree", "parse the body")

    marked = {
        hit.text.encode()[each.start : each.end].decode()
        for hit in hits
        if hit.qualified_name == "parse_body"
        for each in hit.matches
    }
    assert {"parse", "body"} <= marked <= {"parse", "body", "Parses"}


async def test_lines_are_those_of_the_file_as_it_is_now(services: Indexing, tree: Path) -> None:
    content = (tree / "app.py").read_text("utf-8")
    whole = await _lines(services, "app.py")
    assert (whole.text, whole.end_line) == (content, content.count("\n"))
    assert whole.freshness == _FRESHNESS.FRESHNESS_FRESH

    edit(tree / "app.py", "import json", "import json, canary")
    now = await _lines(services, "app.py", 3, 3)

    assert now.text == "import json, canary\n"
    assert now.freshness == _FRESHNESS.FRESHNESS_CHANGED
    assert now.file_digest != whole.file_digest


@pytest.mark.parametrize("path", ["none.py", "../tree/app.py", "/etc/passwd", ".env", "app.py/"])
async def test_lines_of_what_is_not_indexed_are_not_read(
    services: Indexing, tree: Path, path: str
) -> None:
    """Red when the path goes to io without a look into the index."""
    (tree / ".env").write_text("SECRET=canary\n")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _lines(services, path)

    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_lines_of_a_file_that_is_gone_say_so(services: Indexing, tree: Path) -> None:
    (tree / "copy.py").unlink()

    with pytest.raises(grpc.aio.AioRpcError, match="gone since") as caught:
        await _lines(services, "copy.py")

    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_of_a_folder_that_is_not_there_nothing_is_told_to_be_gone(
    services: Indexing, roots: Path, tree: Path
) -> None:
    """Red when each file of it is: it is not mounted, and to index again helps nobody."""
    await asyncio.to_thread(tree.rename, roots / "away")

    found = await services.searches.SearchNodes(
        search_pb2.SearchNodesRequest(parent="workspaces/tree", query="parse_body", verify=True)
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _lines(services, "app.py")

    assert {hit.freshness for hit in found.hits} == {_FRESHNESS.FRESHNESS_UNSPECIFIED}
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "folder" in str(refused.value.details())
