"""Hits are held against the files; pages stay as they were found."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from blake3 import blake3

from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from services.indexer.search.truth import FILES_AT_ONCE
from tests.integration.indexing import FINISHED, indexing
from tests.integration.samples import edit, write_many

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.indexing import Indexing

Hit = search_pb2.NodeHit
FRESH, MOVED = Hit.FRESHNESS_FRESH, Hit.FRESHNESS_MOVED
CHANGED, GONE = Hit.FRESHNESS_CHANGED, Hit.FRESHNESS_GONE


async def _search(services: Indexing, query: str, **fields: Any) -> Any:
    request = search_pb2.SearchNodesRequest(
        **{"parent": "workspaces/tree", "query": query, "page_size": 100, **fields}
    )
    return await services.searches.SearchNodes(request)


async def _verified(services: Indexing, **fields: Any) -> dict[str, search_pb2.NodeHit]:
    response = await _search(services, "router json body database", verify=True, **fields)
    return {f"{hit.path}:{hit.qualified_name}": hit for hit in response.hits}


async def test_hits_of_files_that_did_not_change_are_fresh(services: Indexing, tree: Path) -> None:
    hits = await _verified(services)

    assert {hit.freshness for hit in hits.values()} == {FRESH}
    assert {hit.text for hit in hits.values()} == {""}


async def test_hits_are_found_again_where_their_text_is_now(services: Indexing, tree: Path) -> None:
    """Planted once: with the digest that was indexed, what had moved was told as changed."""
    before = await _verified(services)
    edit(tree / "app.py", "import json\n", "import json\n# one line more\n")
    edit(tree / "app.py", "return json.loads(raw)", "return json.loads(raw or '{}')")
    text = (tree / "app.py").read_text().replace("def render_error(code, message)", "def shown(c)")
    (tree / "app.py").write_text(text)
    (tree / "db" / "store.py").unlink()

    hits = await _verified(services, with_text=True)

    content = (tree / "app.py").read_bytes()
    states = {name.partition(":")[2]: hit.freshness for name, hit in hits.items()}
    assert states["Router.find_handler"] == states["Router.add_route"] == MOVED
    assert states["parse_body"] == CHANGED
    assert states["render_error"] == GONE
    assert states["open_database"] == states["close_database"] == GONE
    assert states["formatPrice"] == FRESH
    moved = hits["app.py:Router.find_handler"]
    assert moved.text.encode() == content[moved.start_byte : moved.end_byte]
    assert moved.text.startswith("def find_handler")
    assert moved.start_line == before["app.py:Router.find_handler"].start_line + 1
    assert moved.file_digest == blake3(content).digest()
    assert hits["app.py:parse_body"].text == hits["app.py:render_error"].text == ""


async def test_a_node_that_stays_in_its_place_of_a_changed_file_is_fresh(
    services: Indexing, tree: Path
) -> None:
    with (tree / "app.py").open("a") as file:
        file.write("\n\ndef more():\n    return 1\n")

    hits = await _verified(services, with_text=True)

    assert hits["app.py:parse_body"].freshness == FRESH
    assert hits["app.py:parse_body"].text.startswith("def parse_body")


async def test_of_two_equal_texts_each_is_found_by_its_name(
    services: Indexing, roots: Path, tree: Path
) -> None:
    twin = "    def same(self):\n        return 'router json body'\n"
    (tree / "twins.py").write_text(f"class A:\n{twin}\n\nclass B:\n{twin}")
    await services.succeed("tree")
    edit(tree / "twins.py", "class A:", "# above\n\n\nclass A:")

    hits = await _verified(services)

    lines = {name: hits[f"twins.py:{name}.same"].start_line for name in "AB"}
    assert lines == {"A": 5, "B": 10}


async def test_a_node_is_not_found_in_its_twin_that_a_filter_leaves_out(
    services: Indexing, tree: Path
) -> None:
    """Red when a changed file is matched with the hits of the page alone."""
    twin = "    def close(self):\n        return 'router json body'\n"
    (tree / "twins.py").write_text(f"class Alpha:\n{twin}\n\nclass Beta:\n{twin}")
    await services.succeed("tree")
    (tree / "twins.py").write_text(f"# above\nclass Alpha:\n{twin}")

    only = search_pb2.SearchFilter(symbols=["Beta.close"])
    filtered = await _verified(services, filter=only)
    both = await _verified(services, filter=search_pb2.SearchFilter(paths=["twins.py"]))

    assert {name: hit.freshness for name, hit in filtered.items()} == {"twins.py:Beta.close": GONE}
    states = {name.partition(":")[2]: hit.freshness for name, hit in both.items()}
    assert (states["Alpha.close"], states["Beta.close"]) == (MOVED, GONE)


async def test_of_nodes_of_one_name_each_that_is_left_is_found_once(
    services: Indexing, tree: Path
) -> None:
    """Red when a name that another node has kept passes for a node whose text is another now."""
    twin = "def same(router):\n    return 'router json body'\n"
    getter = "    @property\n    def size(self):\n        return self.router\n"
    setter = "    @size.setter\n    def size(self, body):\n        self.router = body\n"
    (tree / "twins.py").write_text(f"{twin}\n\n{twin}")
    (tree / "sizes.py").write_text(f"class Gone:\n{getter}\n{setter}\n")
    (tree / "other.py").write_text(f"class Other:\n{getter}\n{setter}\n")
    await services.succeed("tree")
    (tree / "twins.py").write_text(f"# above\n{twin}")
    (tree / "sizes.py").write_text(f"class Gone:\n{setter}\n")
    edit(tree / "other.py", "return self.router", "return self.router or 0")

    only = search_pb2.SearchFilter(symbols=["same", "Gone.size", "Other.size"])
    found = (await _search(services, "router json body", verify=True, filter=only)).hits

    states = {
        path: [hit.freshness for hit in sorted(found, key=lambda h: h.node_id) if hit.path == path]
        for path in ("twins.py", "sizes.py", "other.py")
    }
    assert states == {
        "twins.py": [MOVED, GONE],
        "sizes.py": [GONE, MOVED],
        "other.py": [CHANGED, MOVED],
    }


async def test_a_file_that_became_something_else_is_changed(services: Indexing, tree: Path) -> None:
    (tree / "app.py").write_bytes(b"\0binary")

    hits = await _verified(services)

    assert hits["app.py:parse_body"].freshness == CHANGED


async def test_hits_of_more_files_than_are_cut_at_once_are_all_looked_for(
    services: Indexing, roots: Path, tree: Path
) -> None:
    """Red when the files past the first hundred are told as changed without a look."""
    count = FILES_AT_ONCE + 20
    for number in range(count):
        (tree / f"one{number}.py").write_text(f"def router_{number}(body):\n    return {number}\n")
    await services.succeed("tree")
    for number in range(count):
        edit(tree / f"one{number}.py", "def ", "# above\ndef ")

    only = search_pb2.SearchFilter(paths=["one*.py"], kinds=["function"])
    hits = await _verified(services, filter=only, page_size=1000, with_text=True)

    assert len(hits) == count
    assert {hit.freshness for hit in hits.values()} == {MOVED}
    assert {hit.start_line for hit in hits.values()} == {2}
    assert all(hit.text.startswith(f"def {hit.qualified_name}(") for hit in hits.values())


async def test_pages_stay_as_they_were_found_while_files_change(
    services: Indexing, tree: Path, roots: Path, sockets: Path
) -> None:
    """Planted once: with an offset for a token, a node came twice and one never."""
    write_many(tree / "many", 40, per_file=4)
    await services.succeed("tree")
    whole = await _search(services, "total value", page_size=1000)
    gone = {hit.node_id for hit in whole.hits if hit.path == "many/part_000008.py"}
    seen, request = [], {"page_size": 7}
    page = await _search(services, "total value", **request)
    write_many(tree / "many2", 30, per_file=3)
    edit(tree / "many" / "part_000000.py", "def work_0", "# moved\n\n\ndef work_0")
    (tree / "many" / "part_000008.py").unlink()
    await services.succeed("tree")
    (sockets / "other").mkdir()
    async with indexing(roots, sockets / "other", services.url) as replica:
        while True:
            seen += list(page.hits)
            if not page.next_page_token:
                break
            token = page.next_page_token
            page = await _search(replica, "total value", page_token=token, page_size=7)

    shown = [hit.node_id for hit in seen]
    first = [hit.node_id for hit in whole.hits[:7]]
    assert gone
    assert shown == [
        hit.node_id for hit in whole.hits if hit.node_id in first or hit.node_id not in gone
    ]
    assert [hit.score for hit in seen] == sorted((hit.score for hit in seen), reverse=True)


async def test_a_token_of_another_search_is_refused(services: Indexing, tree: Path) -> None:
    first = await _search(services, "json", page_size=1)

    for token, query in ((first.next_page_token, "other"), ("eJwDAAAAAAE=", "json"), ("?", "json")):
        with pytest.raises(grpc.aio.AioRpcError, match="page token") as caught:
            await _search(services, query, page_token=token)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_same_question_gives_the_same_answer(services: Indexing, tree: Path) -> None:
    answers = [
        [(hit.node_id, hit.score) for hit in (await _search(services, "json body value")).hits]
        for _ in range(5)
    ]

    assert all(answer == answers[0] for answer in answers)


async def test_replicas_answer_alike_and_equal_hits_stand_by_path(
    services: Indexing, roots: Path, tree: Path, sockets: Path
) -> None:
    """Of copies of one text both arms know nothing to tell them apart by.

    Red when ranking leaves equal hits as they come, and the store gives them in any order.
    """
    for number in (3, 1, 4, 0, 2):
        (tree / f"copy{number}.py").write_text("def copied_body(json):\n    return json\n")
        await services.succeed("tree")  # one by one: the later it came, the higher its id
    (sockets / "other").mkdir()
    async with indexing(roots, sockets / "other", services.url) as replica:
        answers = [
            [(hit.node_id, hit.path, hit.score) for hit in (await _search(each, query)).hits]
            for query in ("copied json body", "copied_body", "return json;", "json body value")
            for each in (services, replica, services)
        ]

    for first, *others in (answers[at : at + 3] for at in range(0, len(answers), 3)):
        assert all(other == first for other in others)
        copies = [(score, path) for _, path, score in first if path.startswith("copy")]
        assert [path for _, path in copies] == [f"copy{number}.py" for number in range(5)]
        assert len({score for score, _ in copies}) == 1


async def test_while_a_run_is_at_work_nothing_of_an_old_generation_is_found(
    services: Indexing, tree: Path
) -> None:
    """Each answer is of one of the texts that a file had, and in the end of the last alone.

    Planted once: with removed nodes left in the tables, the first round shows them.
    """
    path = tree / "churn.py"
    texts: dict[bytes, bytes] = {}
    for generation in range(6):
        names = [f"canary_{generation}_{number}" for number in range(40)]
        data = "\n\n".join(f"def {name}():\n    return 'canary'\n" for name in names).encode()
        path.write_bytes(data)
        texts[blake3(data).digest()] = data
        run = await services.begin("tree")
        done = asyncio.create_task(services.wait(run))
        searches = 0
        while not done.done() or not searches:
            searches += 1
            found = [
                hit for hit in (await _search(services, "canary")).hits if hit.path == path.name
            ]
            generations = {hit.file_digest for hit in found}
            assert len(generations) <= 1
            for hit in found:
                data = texts[hit.file_digest]
                assert hit.qualified_name.encode() in data[hit.start_byte : hit.end_byte]
        assert (await done).state in FINISHED
        last = [hit for hit in (await _search(services, "canary")).hits if hit.path == path.name]
        assert {hit.qualified_name for hit in last} == set(names)
        assert {hit.file_digest for hit in last} == {blake3(path.read_bytes()).digest()}
