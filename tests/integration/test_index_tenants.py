"""Tenants: each sees its own workspaces, whatever it asks for, and PostgreSQL is the second line.

Each was seen red once: the first line with `check_request` returning at once, the second with
`restrict` left out of `Database.transaction`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lodestone.access.v1 import access_pb2
from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import index_run_service_pb2_grpc as runs_grpc
from lodestone.indexer.v1 import queue_service_pb2 as queue_pb2
from lodestone.indexer.v1 import queue_service_pb2_grpc as queue_grpc
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import search_service_pb2_grpc as search_grpc
from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from lodestone.indexer.v1 import workspace_service_pb2_grpc as workspaces_grpc
from services.client import AccessError, InvalidCallError, Lodestone
from services.indexer.model import ReferenceKind, WorkspaceId
from services.indexer.search.model import SearchFilter
from services.indexer.storage import tenancy
from services.indexer.storage.database import Database
from services.indexer.storage.graph import GraphStore
from services.indexer.storage.search import SearchStore
from services.runtime import access
from services.runtime.access import Identity, Scope
from services.runtime.exits import StartError
from tests.integration.tenants import CANARY
from tests.support.contract_fields import failure_of, new_request, start_call

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.tenants import Tenants

_CODE = grpc.StatusCode


async def code_of(call: Any) -> grpc.StatusCode:
    """Returns how a call ended; a stream is read to its first message."""
    failure = await failure_of(call)
    return _CODE.OK if failure is None else failure.code()


async def methods_of(channel: grpc.aio.Channel) -> list[str]:
    """Returns the methods that a server serves, by reflection, health and reflection aside."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [item async for item in stub.ServerReflectionInfo(iter([ask]), timeout=5)]
    names = [service.name for service in answers[0].list_services_response.service]
    pool = descriptor_pool.Default()
    return [
        f"/{name}/{method.name}"
        for name in names
        if not name.startswith("grpc.")
        for method in pool.FindServiceByName(name).methods
    ]


async def call(channel: grpc.aio.Channel, method: str) -> grpc.StatusCode:
    """Calls a method with an empty request."""
    service, _, name = method[1:].partition("/")
    descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return await code_of(start_call(channel, method, descriptor, new_request(descriptor)))


async def test_every_method_is_closed_to_strangers_and_to_those_without_the_scope(
    tenants: Tenants,
) -> None:
    seen = 0
    for service in ("io", "embed", "indexer"):
        async with contextlib.AsyncExitStack() as stack:
            channels = {
                who: await stack.enter_async_context(tenants.channel(who, service))
                for who in ("", "unknown", "expired", "reader", "service")
            }
            for method in await methods_of(channels["service"]):
                seen += 1
                for who in ("", "unknown", "expired"):
                    assert await call(channels[who], method) is _CODE.UNAUTHENTICATED, method
                service_name, _, name = method[1:].partition("/")
                found = descriptor_pool.Default().FindServiceByName(service_name)
                rule = found.methods_by_name[name].GetOptions().Extensions[access_pb2.rule]
                refused = await call(channels["reader"], method) is _CODE.PERMISSION_DENIED
                assert refused == (rule.scope != access_pb2.SCOPE_READ), method
                assert await call(channels["service"], method) is not _CODE.PERMISSION_DENIED
    assert seen >= 53


async def test_a_tenant_reaches_nothing_of_another_one(tenants: Tenants) -> None:
    async with tenants.channel("a") as a, tenants.channel("b") as b:
        mine = await search_grpc.SearchServiceStub(a).SearchNodes(
            search_pb2.SearchNodesRequest(
                parent="workspaces/team-a-web", query=CANARY, with_text=True
            )
        )
        assert CANARY in mine.hits[0].text
        runs = await runs_grpc.IndexRunServiceStub(a).ListIndexRuns(
            runs_pb2.ListIndexRunsRequest(parent="workspaces/team-a-web")
        )
        run = runs.index_runs[0].name

        foreign = "workspaces/team-a-web"
        searches, ledger = search_grpc.SearchServiceStub(b), runs_grpc.IndexRunServiceStub(b)
        trees, queue = workspaces_grpc.WorkspaceServiceStub(b), queue_grpc.QueueServiceStub(b)
        refused = [
            searches.SearchNodes(search_pb2.SearchNodesRequest(parent=foreign, query="x")),
            searches.SearchNodes(
                search_pb2.SearchNodesRequest(
                    parent="workspaces/team-b-web", query=CANARY, other_parents=[foreign]
                )
            ),
            searches.ReadLines(search_pb2.ReadLinesRequest(parent=foreign, path="app.py")),
            searches.BuildContext(
                search_pb2.BuildContextRequest(
                    search=search_pb2.SearchNodesRequest(parent=foreign, query=CANARY),
                    token_budget=100,
                )
            ),
            searches.BuildContext(
                search_pb2.BuildContextRequest(
                    search=search_pb2.SearchNodesRequest(
                        parent="workspaces/team-b-web", query=CANARY, other_parents=[foreign]
                    ),
                    token_budget=100,
                )
            ),
            ledger.GetIndexRun(runs_pb2.GetIndexRunRequest(name=run)),
            ledger.ListIndexRuns(runs_pb2.ListIndexRunsRequest(parent=foreign)),
            ledger.ListIndexRunOutcomes(runs_pb2.ListIndexRunOutcomesRequest(parent=run)),
            ledger.CancelIndexRun(runs_pb2.CancelIndexRunRequest(name=run)),
            ledger.WatchIndexRun(runs_pb2.WatchIndexRunRequest(name=run)),
            ledger.CreateIndexRun(
                runs_pb2.CreateIndexRunRequest(
                    parent=foreign,
                    request_id="0a0a0a0a-0000-4000-8000-000000000000",
                    mode=runs_pb2.IndexRun.MODE_FULL,
                )
            ),
            trees.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name=foreign)),
            trees.GetWorkspaceStats(workspaces_pb2.GetWorkspaceStatsRequest(name=foreign)),
            trees.DeleteWorkspace(workspaces_pb2.DeleteWorkspaceRequest(name=foreign)),
            trees.GetWorkspace(workspaces_pb2.GetWorkspaceRequest(name="workspaces/team-c-web")),
            trees.CreateWorkspace(_over_the_root_of_a()),
            queue.GetQueueStats(queue_pb2.GetQueueStatsRequest()),
            queue.PauseQueue(queue_pb2.PauseQueueRequest(parent=foreign)),
        ]
        for number, attempt in enumerate(refused):
            assert await code_of(attempt) is _CODE.PERMISSION_DENIED, number

        own = await searches.SearchNodes(
            search_pb2.SearchNodesRequest(
                parent="workspaces/team-b-web", query=CANARY, with_text=True, page_size=100
            )
        )
        context = await searches.BuildContext(
            search_pb2.BuildContextRequest(
                search=search_pb2.SearchNodesRequest(
                    parent="workspaces/team-b-web", query=CANARY, page_size=1000
                ),
                token_budget=10_000,
            )
        )
        unseen = searches.ReadLines(
            search_pb2.ReadLinesRequest(parent="workspaces/team-b-web", path=f"{CANARY}.py")
        )
        assert await code_of(unseen) is _CODE.NOT_FOUND
        assert context.pieces
        assert CANARY not in str(context)
        listed = await trees.ListWorkspaces(workspaces_pb2.ListWorkspacesRequest())
        all_runs = await ledger.ListIndexRuns(runs_pb2.ListIndexRunsRequest(parent="workspaces/-"))
        assert own.hits
        assert CANARY not in str(own)
        assert [item.name for item in listed.workspaces] == ["workspaces/team-b-web"]
        assert {item.name.split("/")[1] for item in all_runs.index_runs} == {"team-b-web"}


async def test_the_client_shows_its_token(tenants: Tenants, tmp_path: Path) -> None:
    address = f"unix:{tenants.services.folder}/indexer"
    token = tmp_path / "reader"
    token.write_text(tenants.tokens["reader"], encoding="ascii")
    async with Lodestone.connect(address) as stranger:
        with pytest.raises(AccessError) as unknown:
            await stranger.workspaces()
    async with Lodestone.connect(address, workspace="team-a-web", token_file=token) as reader:
        assert (await reader.read(f"{CANARY}.py", 1, 1)).text == f"def {CANARY}():\n"
        with pytest.raises(AccessError) as forbidden:
            await reader.index()

    assert (unknown.value.reason, forbidden.value.reason) == ("UNAUTHENTICATED", "FORBIDDEN")
    with pytest.raises(InvalidCallError, match="in the clear"):
        Lodestone.connect("example.org:7303", token_file=token)


def _over_the_root_of_a() -> workspaces_pb2.CreateWorkspaceRequest:
    request = workspaces_pb2.CreateWorkspaceRequest(workspace_id="team-b-steals")
    request.workspace.tree.root = "roots/trees"
    return request


async def test_a_statement_that_names_no_workspace_reads_the_caller_s_rows_alone(
    tenants: Tenants,
) -> None:
    database = Database(tenants.services.url, connections=2, timeout_seconds=30)
    await database.open()
    try:
        async with database.connection() as connection:
            tables = [row["relname"] for row in await connection.fetch(tenancy._TABLES)]
            all_rows = {
                table: await connection.fetchval(f"SELECT count(*) FROM {table}")
                for table in tables
            }
        assert {"workspaces", "files", "nodes", "runs", "run_outcomes"} <= set(tables)
        access.read_for(Identity("b", frozenset({Scope.READ}), ("team-b-*",)))
        async with database.connection() as connection:
            for table in tables:
                column = "id" if table == "workspaces" else "workspace_id"
                seen = await connection.fetch(f"SELECT DISTINCT {column} FROM {table}")
                assert {row[0] for row in seen} <= {2}, table
        store = SearchStore(database)
        foreign = await store.lexical(WorkspaceId(1), [CANARY], SearchFilter(), 10)
        scores = {item.node_id: item.score for item in foreign}
        assert await store.hits(WorkspaceId(1), "team-a-web", scores) == []
        async with GraphStore(database).view(WorkspaceId(1)) as view:
            assert await view.nodes(list(scores)) == {}
            assert await view.users([CANARY], list(ReferenceKind), 10) == []
        assert all_rows["nodes"] > 0

        access.read_for(Identity("nobody", frozenset({Scope.READ}), ()))
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM nodes") == 0
    finally:
        await database.close()


async def test_what_a_tenant_reads_is_still_found_by_indexes(tenants: Tenants) -> None:
    database = Database(tenants.services.url, connections=2, timeout_seconds=30)
    await database.open()
    try:
        access.read_for(Identity("b", frozenset({Scope.READ}), ("team-b-*",)))
        async with database.connection() as connection:
            await connection.execute("SET LOCAL enable_seqscan = off")
            plans = {}
            for name, statement in {
                "nodes": "SELECT * FROM nodes WHERE workspace_id = 2 AND id = ANY ('{1,2}')",
                "terms": "SELECT * FROM node_terms_w2 WHERE terms && '{parse}'",
                "files": "SELECT * FROM files WHERE workspace_id = 2 AND path > 'a' ORDER BY path",
            }.items():
                rows = await connection.fetch(f"EXPLAIN {statement}")
                plans[name] = "\n".join(row[0] for row in rows)
    finally:
        await database.close()
    assert "terms_idx" in plans["terms"]
    assert "files_workspace_id_path_key" in plans["files"]


async def test_an_account_that_may_not_make_the_role_is_told_what_to_do(migrated_url: str) -> None:
    connection = await asyncpg.connect(migrated_url)
    try:
        if not await connection.fetchval("SELECT to_regrole('lodestone_plain') IS NOT NULL"):
            await connection.execute("CREATE ROLE lodestone_plain NOLOGIN")
        await connection.execute("GRANT ALL ON SCHEMA public TO lodestone_plain")
    finally:
        await connection.close()
    mark = "&" if "?" in migrated_url else "?"
    database = Database(
        f"{migrated_url}{mark}role=lodestone_plain", connections=2, timeout_seconds=30
    )
    await database.open()
    try:
        with pytest.raises(StartError, match="Let an administrator run: CREATE ROLE"):
            await tenancy.install(database)
    finally:
        await database.close()


async def test_the_rules_are_made_once_and_cover_tables_that_came_later(migrated_url: str) -> None:
    database = Database(migrated_url, connections=2, timeout_seconds=30)
    await database.open()
    try:
        await tenancy.install(database)
        await tenancy.install(database)
        async with database.connection() as connection:
            await connection.execute("CREATE TABLE later (workspace_id int NOT NULL, word text)")
            await connection.execute("INSERT INTO later VALUES (1, 'heliotrope')")
        await tenancy.install(database)
        access.read_for(Identity("nobody", frozenset({Scope.READ}), ("team-b-*",)))
        async with database.connection() as connection:
            assert await connection.fetchval("SELECT count(*) FROM later") == 0
    finally:
        await database.close()
