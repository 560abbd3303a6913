"""Tenants: each sees its own workspaces, whatever it asks for, and PostgreSQL is the second line.

Each was seen red once: the first line with `check_request` returning at once, the second with
`restrict` left out of `Database.transaction`.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
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
from services.runtime.channel import connect
from services.runtime.exits import StartError
from services.runtime.tokens import digest_of, new_token
from tests.integration.indexing import Indexing, indexing
from tests.integration.samples import write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CANARY = "heliotrope_canary"
_CODE = grpc.StatusCode


@dataclass
class Tenants:
    """Services that ask for tokens, and a channel of each kind of caller."""

    services: Indexing
    tokens: dict[str, str]
    folder: Path

    def channel(self, who: str, service: str = "indexer") -> grpc.aio.Channel:
        """Returns a channel that shows somebody's token; an empty name shows none."""
        file = self.folder / f"token-{who}" if who else None
        if file is not None:
            file.write_text(self.tokens.get(who, "lds_garbage"), encoding="ascii")
        return connect(f"unix:{self.services.folder}/{service}", token_file=file)


@pytest.fixture
async def tenants(
    roots: Path, tmp_path: Path, sockets: Path, migrated_url: str
) -> AsyncIterator[Tenants]:
    """Two tenants, a- and b-, each with an indexed workspace; a's holds the canary."""
    tokens = {name: new_token() for name in ("service", "a", "b", "reader", "expired")}
    rights: dict[str, dict[str, Any]] = {
        "service": {"scopes": list(Scope)},
        "a": {"scopes": ["read", "run", "admin"], "workspaces": ["team-a-*"], "roots": ["trees"]},
        "b": {"scopes": ["read", "run", "admin"], "workspaces": ["team-b-*"], "roots": ["none"]},
        "reader": {"scopes": ["read"]},
        "expired": {"scopes": list(Scope), "expires_at": "2020-01-01T00:00:00Z"},
    }
    accepted = tmp_path / "accepted.json"
    entries = [
        {"id": name, "name": name, "sha256": digest_of(tokens[name]), **rights[name]}
        for name in tokens
    ]
    accepted.write_text(json.dumps({"tokens": entries}), encoding="utf-8")
    own = tmp_path / "own"
    own.write_text(tokens["service"], encoding="ascii")
    write_tree(roots / "a", **{f"{CANARY}_py": f"def {CANARY}():\n    return '{CANARY}'\n"})
    write_tree(roots / "b")
    settings = {"accepted_tokens_file": accepted, "token_file": own}
    async with indexing(roots, sockets, migrated_url, all_settings=settings) as services:
        for name in ("a", "b"):
            await services.create(f"team-{name}-web", name)
            await services.succeed(f"team-{name}-web")
        yield Tenants(services, tokens, tmp_path)


async def code_of(call: Any) -> grpc.StatusCode:
    """Returns how a call ended; a stream is read to its first message."""
    try:
        if hasattr(call, "__aiter__"):
            await anext(aiter(call))
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    except StopAsyncIteration:
        pass
    return _CODE.OK


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
    request = message_factory.GetMessageClass(descriptor.input_type)()
    kind = {
        (False, False): "unary_unary",
        (False, True): "unary_stream",
        (True, False): "stream_unary",
        (True, True): "stream_stream",
    }[descriptor.client_streaming, descriptor.server_streaming]
    multi = getattr(channel, kind)(
        method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=lambda data: data,
    )
    argument = iter([request]) if descriptor.client_streaming else request
    return await code_of(multi(argument, timeout=10))


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
