"""T1, T3: every method of every service, asked by a tenant for what belongs to another.

Requests are made from the contracts, so that a new method is asked as well, and one that names no
workspace and no root fails the test until somebody has judged it. Red with the resources of
`ListFailedNodes` left out of its rule, with `other_parents` left out of that of `SearchNodes` (both
`NOT_FOUND` then: PostgreSQL's rules are the second line), and with `check_request` returning at
once. The forged token is red without `workspace_id` in `HITS` and without `restrict` both; with one
of them it is not.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc

from lodestone.access.v1 import access_pb2
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import search_service_pb2_grpc as search_grpc
from tests.integration.oracle import rows_of
from tests.integration.tenants import CANARY
from tests.support.contract_fields import (
    SERVICES,
    dotted,
    end_of,
    failure_of,
    fields_of,
    methods_of,
    set_field,
    start_call,
)
from tests.support.contract_requests import Resources, fill, resource_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.tenants import Tenants

_CODE = grpc.StatusCode
_RUN = "indexRuns/0e0e0e0e-0000-4000-8000-00000000000e"
OWN = Resources("team-b-web", f"workspaces/team-b-web/{_RUN}", "none")

SHARED = {
    "EmbedService/Embed",
    "EmbedService/EmbedStream",
    "ModelService/GetModel",
    "ModelService/ListModels",
    "RerankService/Rerank",
    "ParseService/ListLanguages",
    "RootService/ListRoots",
    "WorkspaceService/ListWorkspaces",
}
"""Methods that belong to no workspace and no root, or show each caller its own alone."""

FOR_ALL = {
    "ModelService/LoadModel",
    "ModelService/UnloadModel",
}
"""Methods for callers of all workspaces and roots."""

BY_TOKEN = {"QueueService/RenewBulkImport", "QueueService/EndBulkImport"}
"""Methods for whoever shows the token of an import, which nobody guesses."""

IGNORED = {"workspace.name", "workspace.active_model", "root.name"}
"""Fields that a request may hold and that a server does not read: it writes them."""


def rule_of(method: Any) -> Any:
    return method.GetOptions().Extensions[access_pb2.rule]


def short_name(method: Any) -> str:
    return f"{method.containing_service.name}/{method.name}"


def foreign_requests(method: Any, foreign: Resources) -> Iterator[tuple[str, Any]]:
    """Yields requests in which one field names what belongs to another, and the rest one's own."""
    for path in fields_of(method.input_type):
        name = resource_name(path[-1], foreign)
        if name is None or name == resource_name(path[-1], OWN) or dotted(path) in IGNORED:
            continue
        request = fill(method, OWN)
        set_field(request, path, [name])
        yield dotted(path), request


def told_by(failure: grpc.aio.AioRpcError) -> str:
    """Returns all that a failure tells, its details included."""
    metadata = [value for _, value in failure.trailing_metadata() or ()]
    texts = [value.decode("latin-1") if isinstance(value, bytes) else value for value in metadata]
    return " ".join([failure.details() or "", *texts])


def contents_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


async def belongings_of_a(tenants: Tenants, roots: Path) -> dict[str, Any]:
    """Returns the index, the ledger, the queue and the files of tenant a."""
    connection = await asyncpg.connect(tenants.services.url)
    try:
        found: dict[str, Any] = {
            table: await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")
            for table in ("workspaces", "runs", "queue_holds", "index_marks", "workspace_models")
        }
    finally:
        await connection.close()
    found["rows"] = await rows_of(tenants.services.url, "team-a-web")
    found["files"] = contents_of(roots)
    return found


async def ids_of_a(tenants: Tenants) -> tuple[int, ...]:
    connection = await asyncpg.connect(tenants.services.url)
    try:
        rows = await connection.fetch(
            "SELECT n.id FROM nodes n JOIN workspaces w ON w.id = n.workspace_id "
            "WHERE w.name = 'team-a-web' ORDER BY n.id"
        )
    finally:
        await connection.close()
    return tuple(row["id"] for row in rows)


async def test_no_method_reaches_what_belongs_to_another_tenant(
    tenants: Tenants, roots: Path
) -> None:
    runs = await tenants.services.list_runs("team-a-web")
    foreign = Resources("team-a-web", runs[0].name, "trees", await ids_of_a(tenants))
    before = await belongings_of_a(tenants, roots)
    asked: set[str] = set()
    for process in SERVICES:
        async with tenants.channel("b", process) as channel:
            for name, method in methods_of(process):
                for field, request in foreign_requests(method, foreign):
                    asked.add(short_name(method))
                    failure = await failure_of(start_call(channel, name, method, request))
                    assert failure is not None, f"{name} answers for a foreign {field}"
                    expected = _CODE.PERMISSION_DENIED
                    if field.endswith("changed_since_index_run"):
                        expected = _CODE.INVALID_ARGUMENT
                    assert failure.code() is expected, (name, field, failure)
                    assert CANARY not in told_by(failure), (name, field)
    assert await belongings_of_a(tenants, roots) == before

    everything = {short_name(method) for process in SERVICES for _, method in methods_of(process)}
    assert everything - asked == SHARED | FOR_ALL | BY_TOKEN


async def test_a_method_that_names_no_resource_tells_nothing_of_another_tenant(
    tenants: Tenants,
) -> None:
    for process in SERVICES:
        async with tenants.channel("b", process) as channel:
            for name, method in methods_of(process):
                if short_name(method) not in SHARED | FOR_ALL | BY_TOKEN:
                    continue
                call = start_call(channel, name, method, fill(method, OWN))
                told, failure = await end_of(call)
                if short_name(method) in FOR_ALL:
                    assert failure is not None
                    assert failure.code() is _CODE.PERMISSION_DENIED, name
                else:  # no import has the token, and a model that embeds does not rerank
                    refused = failure is not None and failure.code() is _CODE.INVALID_ARGUMENT
                    may_fail = method.name == "Rerank" or short_name(method) in BY_TOKEN
                    assert failure is None or (refused and may_fail), (name, failure)
                    assert CANARY.encode() not in told, name
                    assert b"team-a" not in told, name


async def test_ids_of_another_tenant_s_nodes_find_nothing_in_one_s_own_workspace(
    tenants: Tenants,
) -> None:
    ids = await ids_of_a(tenants)
    own = Resources(OWN.workspace, OWN.run, OWN.root, ids[:100])
    asked = set()
    async with tenants.channel("b") as channel:
        for name, method in methods_of("indexer"):
            fields = {path[-1].name for path in fields_of(method.input_type)}
            if not fields & {"node_id", "node_ids"}:
                continue
            request = fill(method, own)
            for holder in (request, getattr(request, "search", None)):
                if holder is not None and hasattr(holder, "filter"):
                    holder.ClearField("filter")
                    holder.ClearField("other_parents")
            asked.add(method.name)
            told, failure = await end_of(start_call(channel, name, method, request))
            assert CANARY.encode() not in told, name
            if failure is not None:
                assert failure.code() in {_CODE.NOT_FOUND, _CODE.INVALID_ARGUMENT}, failure
                assert CANARY not in told_by(failure), name
    assert asked == {"CreateIndexRun", "ExplainHit", "ExpandNodes"}


async def test_a_forged_page_token_shows_no_node_of_another_tenant(tenants: Tenants) -> None:
    """Tokens are not signed: what is left of a result is looked up in one's own workspaces."""
    ids = await ids_of_a(tenants)
    request = search_pb2.SearchNodesRequest(
        parent="workspaces/team-b-web", query="parse", page_size=1, with_text=True
    )
    async with tenants.channel("b") as channel:
        search = search_grpc.SearchServiceStub(channel)
        first = await search.SearchNodes(request)
        packed = base64.urlsafe_b64decode(first.next_page_token)
        digest, tables = json.loads(zlib.decompress(packed))
        assert tables[0]
        forged = json.dumps([digest, [[[node, 1.0] for node in ids]]]).encode()
        request.page_token = base64.urlsafe_b64encode(zlib.compress(forged)).decode()
        request.page_size = 1000
        second = await search.SearchNodes(request)

    assert first.hits
    assert not second.hits
