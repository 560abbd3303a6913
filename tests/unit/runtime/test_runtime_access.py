"""Who may call what: tokens, scopes and resources, on a served method and over the contracts."""

from __future__ import annotations

import asyncio
import json
import resource
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from prometheus_client import REGISTRY

from lodestone.embed.v1 import embed_service_pb2 as embed_pb2
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.indexer.v1 import queue_service_pb2 as queue_pb2
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1 import workspace_service_pb2 as workspaces_pb2
from lodestone.io.v1 import scan_service_pb2 as scan_pb2
from lodestone.io.v1 import scan_service_pb2_grpc as scan_grpc
from lodestone.io.v1 import tree_pb2
from services.embed.app import EmbedApp
from services.indexer.app import IndexerApp
from services.io.app import IoApp
from services.runtime import file_watch
from services.runtime.access import LOCAL, AccessRules, Identity, MethodRule, Scope
from services.runtime.channel import connect
from services.runtime.errors import ForbiddenError, UnauthenticatedError
from services.runtime.exits import StartError
from services.runtime.file_watch import FileWatch
from services.runtime.status import read_rpc_error
from services.runtime.tokens import AcceptedTokens, OwnToken, digest_of, new_token
from tests.unit.runtime.running import Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

SERVICES = (*IoApp.service_names, *EmbedApp.service_names, *IndexerApp.service_names)


def entry(token: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": "e1",
        "name": "bot",
        "sha256": digest_of(token),
        "scopes": ["read", "run"],
        **fields,
    }


def write_tokens(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"tokens": entries}), encoding="utf-8")
    return path


def method_names() -> list[str]:
    pool = descriptor_pool.Default()
    return [
        f"/{service_name}/{method.name}"
        for service_name in SERVICES
        for method in pool.FindServiceByName(service_name).methods
    ]


async def embed(service: Running, token: str | None, path: Path) -> None:
    """Calls `Embed` with a token, as a client that reads it from a file would."""
    file = path / "own"
    if token is not None:
        file.write_text(token, encoding="ascii")
    async with connect(service.address, token_file=None if token is None else file) as channel:
        request = embed_pb2.EmbedRequest(model="models/echo", texts=["a"])
        request.options.purpose = embed_pb2.PURPOSE_DOCUMENT
        await embed_grpc.EmbedServiceStub(channel).Embed(request, timeout=5)


async def code_of(service: Running, token: str | None, path: Path) -> str:
    try:
        await embed(service, token, path)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize("method", method_names())
def test_every_method_has_a_rule_whose_resources_its_request_has(method: str) -> None:
    """Red when an rpc without an option was added, and when a field was renamed."""
    rule = AccessRules().of(method)
    service, _, name = method[1:].partition("/")
    descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]

    assert rule.scope is not None
    takes_resource = any(
        field.name in {"parent", "tree", "workspace_id"} for field in descriptor.input_type.fields
    )
    assert not takes_resource or rule.resources or method.endswith("/ListIndexRuns")


@pytest.mark.parametrize("method", method_names())
def test_no_method_is_open_to_an_identity_without_scopes(method: str) -> None:
    with pytest.raises(ForbiddenError):
        AccessRules().of(method).check_scope(Identity("x", frozenset(), ("*",), ("*",)))


def test_a_method_without_a_rule_is_refused_to_everybody() -> None:
    assert AccessRules().of("/lodestone.io.v1.ScanService/Unheard") == MethodRule(None)
    with pytest.raises(ForbiddenError, match="no access rule"):
        MethodRule(None).check_scope(LOCAL)


@pytest.mark.parametrize(
    ("method", "request_", "allowed"),
    [
        ("SearchService/SearchNodes", {"parent": "workspaces/team-a-web"}, True),
        ("SearchService/SearchNodes", {"parent": "workspaces/team-b-web"}, False),
        (
            "SearchService/SearchNodes",
            {"parent": "workspaces/team-a-web", "other_parents": ["workspaces/team-b-web"]},
            False,
        ),
        ("QueueService/GetQueueStats", {"parent": ""}, False),
        ("WorkspaceService/GetWorkspace", {"name": "workspaces/-"}, False),
        ("WorkspaceService/GetWorkspace", {"name": "roots/team-a-web"}, False),
    ],
)
def test_a_token_of_some_workspaces_reaches_no_others(
    method: str, request_: dict[str, Any], *, allowed: bool
) -> None:
    identity = Identity("a", frozenset(Scope), ("team-a-*",), ("code",))
    types = {
        "SearchService/SearchNodes": search_pb2.SearchNodesRequest,
        "QueueService/GetQueueStats": queue_pb2.GetQueueStatsRequest,
        "WorkspaceService/GetWorkspace": workspaces_pb2.GetWorkspaceRequest,
    }
    rule = AccessRules().of(f"/lodestone.indexer.v1.{method}")

    if allowed:
        rule.check_request(identity, types[method](**request_))
    else:
        with pytest.raises(ForbiddenError):
            rule.check_request(identity, types[method](**request_))


def test_a_workspace_is_made_only_over_a_root_of_the_caller() -> None:
    rule = AccessRules().of("/lodestone.indexer.v1.WorkspaceService/CreateWorkspace")
    request = workspaces_pb2.CreateWorkspaceRequest(workspace_id="team-a-web")
    request.workspace.tree.root = "roots/code"

    rule.check_request(Identity("a", frozenset(Scope), ("team-a-*",), ("code",)), request)
    with pytest.raises(ForbiddenError, match="a root"):
        rule.check_request(Identity("a", frozenset(Scope), ("team-a-*",), ("other",)), request)


def test_a_rule_over_a_field_that_is_not_there_is_an_error() -> None:
    from services.runtime.access import ResourcePath

    with pytest.raises(ValueError, match="which the request lacks"):
        ResourcePath.parse("tree.rooot", scan_pb2.ScanTreeRequest.DESCRIPTOR)


async def test_a_call_needs_a_token_that_is_known_and_not_expired(
    address: str, tmp_path: Path
) -> None:
    good, late = new_token(), new_token()
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    accepted = write_tokens(
        tmp_path / "accepted",
        entry(good, expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat()),
        entry(late, id="e2", expires_at=yesterday),
    )
    async with running(address, accepted_tokens_file=str(accepted)) as service:
        assert await code_of(service, good, tmp_path) == "OK"
        assert await code_of(service, None, tmp_path) == "UNAUTHENTICATED"
        assert await code_of(service, "lds_garbage", tmp_path) == "UNAUTHENTICATED"
        assert await code_of(service, late, tmp_path) == "UNAUTHENTICATED"
        assert service.app.events.count("called") == 1


async def test_a_token_without_the_scope_or_the_root_is_forbidden(
    address: str, tmp_path: Path
) -> None:
    token = new_token()
    accepted = write_tokens(
        tmp_path / "accepted", entry(token, scopes=["read"], roots=["mine"], workspaces=[])
    )
    own = tmp_path / "own"
    own.write_text(token, encoding="ascii")
    async with (
        running(address, accepted_tokens_file=str(accepted)) as service,
        connect(address, token_file=own) as channel,
    ):
        assert await code_of(service, token, tmp_path) == "PERMISSION_DENIED"
        stub = scan_grpc.ScanServiceStub(channel)
        mine = scan_pb2.ScanTreeRequest()
        mine.tree.root = "roots/mine"
        assert [item async for item in stub.ScanTree(mine, timeout=5)]
        foreign = scan_pb2.ScanTreeRequest()
        foreign.tree.root = "roots/theirs"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [item async for item in stub.ScanTree(foreign, timeout=5)]
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert read_rpc_error(caught.value).reason == "ERROR_REASON_FORBIDDEN"


async def test_refused_calls_are_counted_by_their_cause(address: str, tmp_path: Path) -> None:
    """Red with a cause that is not counted."""
    late, poor = new_token(), new_token()
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    accepted = write_tokens(
        tmp_path / "accepted",
        entry(late, expires_at=yesterday),
        entry(poor, id="e2", scopes=["read"]),
    )

    def counted() -> list[float]:
        name = "lodestone_calls_refused_total"
        causes = ("no_token", "unknown_token", "expired_token", "forbidden")
        return [REGISTRY.get_sample_value(name, {"reason": cause}) or 0.0 for cause in causes]

    before = counted()
    async with running(address, accepted_tokens_file=str(accepted)) as service:
        for token in (None, "lds_garbage", late, poor):
            assert await code_of(service, token, tmp_path) != "OK"

    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1, 1]


async def test_health_needs_no_token_and_reflection_does(address: str, tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    token = new_token()
    own = tmp_path / "own"
    own.write_text(token, encoding="ascii")
    accepted = write_tokens(tmp_path / "accepted", entry(token))
    asks = [reflection_pb2.ServerReflectionRequest(list_services="")]
    async with (
        running(address, accepted_tokens_file=str(accepted)),
        connect(address) as stranger,
        connect(address, token_file=own) as friend,
    ):
        answer = await health_pb2_grpc.HealthStub(stranger).Check(
            health_pb2.HealthCheckRequest(), timeout=5
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(stranger)
        with pytest.raises(grpc.aio.AioRpcError, match="bearer token"):
            [item async for item in stub.ServerReflectionInfo(iter(asks), timeout=5)]
        stub = reflection_pb2_grpc.ServerReflectionStub(friend)
        assert [item async for item in stub.ServerReflectionInfo(iter(asks), timeout=5)]


def test_a_token_is_rotated_without_a_restart(tmp_path: Path) -> None:
    """Two tokens of one name are accepted for a while; then the old one is taken out."""
    old, new = new_token(), new_token()
    path = write_tokens(tmp_path / "accepted", entry(old))
    tokens = AcceptedTokens(path)
    now = [0.0]
    tokens._watch = FileWatch(path, clock=lambda: now[0])

    write_tokens(path, entry(old), entry(new, id="e2"))
    now[0] += 2
    assert tokens.identify(f"Bearer {old}") == tokens.identify(f"bearer {new}")

    write_tokens(path, entry(new, id="e2"))
    now[0] += 2
    assert tokens.identify(f"Bearer {new}").name == "bot"
    with pytest.raises(UnauthenticatedError, match="not known"):
        tokens.identify(f"Bearer {old}")


def test_a_broken_file_keeps_the_tokens_that_were_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = new_token()
    path = write_tokens(tmp_path / "accepted", entry(token))
    tokens = AcceptedTokens(path)
    now = [0.0]
    tokens._watch = FileWatch(path, clock=lambda: now[0])

    path.write_text('{"tokens": [', encoding="utf-8")
    now[0] += 2

    assert tokens.identify(f"Bearer {token}").name == "bot"
    assert "tokens_not_reloaded" in capsys.readouterr().err


def test_a_new_token_is_accepted_from_its_first_call_on(tmp_path: Path) -> None:
    """`lodestone token new` says so; red until the file is looked at the next time."""
    path = write_tokens(tmp_path / "accepted")
    tokens = AcceptedTokens(path)
    tokens._watch = FileWatch(path, clock=lambda: 0.0)
    new = new_token()

    write_tokens(path, entry(new))

    assert tokens.identify(f"Bearer {new}").name == "bot"


def test_a_file_that_can_be_read_only_later_is_tried_until_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file does not change any more: rights come after the content, descriptors are free again.

    Red when a failed try is the last one: what was revoked is then accepted for good.
    """
    revoked, new = new_token(), new_token()
    path = write_tokens(tmp_path / "accepted", entry(revoked))
    tokens = AcceptedTokens(path)
    now = [0.0]
    tokens._watch = FileWatch(path, clock=lambda: now[0])
    write_tokens(path, entry(new))

    with _no_descriptor_left():
        for _ in range(3):
            now[0] += 2
            assert tokens.identify(f"Bearer {revoked}").name == "bot"
    assert capsys.readouterr().err.count("tokens_not_reloaded") == 1

    now[0] += 2
    assert tokens.identify(f"Bearer {new}").name == "bot"
    with pytest.raises(UnauthenticatedError, match="not known"):
        tokens.identify(f"Bearer {revoked}")


@pytest.mark.parametrize("change", ["revoked", "narrowed"])
async def test_a_stream_ends_when_its_token_does_not_count_any_more(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """As UNAVAILABLE: who rotates its token begins again with the new one, and loses nothing.

    Red when a token is looked at as a stream begins, and not again.
    """
    monkeypatch.setattr(file_watch, "_LOOK_SECONDS", 0.0)
    token, own = new_token(), tmp_path / "own"
    own.write_text(token, encoding="ascii")
    accepted = write_tokens(tmp_path / "accepted", entry(token))
    texts: asyncio.Queue[embed_pb2.EmbedStreamRequest] = asyncio.Queue()
    async with running(address, accepted_tokens_file=str(accepted)) as service:
        async with connect(service.address, token_file=own) as channel:
            given: Any = embed_grpc.EmbedServiceStub(channel).EmbedStream(_each(texts), timeout=5)
            texts.put_nowait(_text(1))
            assert (await given.read()).id == 1
            told: Any = scan_grpc.ScanServiceStub(channel).ScanTree(
                scan_pb2.ScanTreeRequest(
                    tree=tree_pb2.Tree(root="roots/main", directory="endless")
                ),
                timeout=5,
            )
            assert (await told.read()).files

            write_tokens(accepted, *([entry(token, roots=["b"])] if change == "narrowed" else []))
            texts.put_nowait(_text(2))

            assert await given.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError, match="begin again"):
                _ = [response async for response in told]
        assert await code_of(service, token, tmp_path) == (
            "OK" if change == "narrowed" else "UNAUTHENTICATED"
        )


async def _each(
    texts: asyncio.Queue[embed_pb2.EmbedStreamRequest],
) -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
    while True:
        yield await texts.get()


def _text(number: int) -> embed_pb2.EmbedStreamRequest:
    return embed_pb2.EmbedStreamRequest(
        id=number,
        model="models/echo",
        text="a",
        options=embed_pb2.EmbedOptions(purpose=embed_pb2.PURPOSE_DOCUMENT),
    )


@contextmanager
def _no_descriptor_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"tokens": [{"id": "e", "name": "n", "sha256": "canary", "scopes": ["read"]}]}',
        '{"tokens": [{"id": "e", "name": "n", "scopes": ["all"]}]}',
    ],
)
def test_a_wrong_file_at_the_start_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accepted"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(StartError, match="file of accepted tokens") as caught:
        AcceptedTokens(path)

    assert "canary" not in caught.value.message


async def test_no_token_and_no_digest_comes_out_in_logs_or_errors(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = "lds_canary-in-a-coal-mine"
    accepted = write_tokens(tmp_path / "accepted", entry(new_token()))
    async with running(address, accepted_tokens_file=str(accepted)) as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await embed(service, canary, tmp_path)

    told = repr(caught.value) + "".join(capsys.readouterr())
    assert "canary" not in told
    assert digest_of(canary) not in told


def test_a_token_goes_to_no_other_machine_in_the_clear(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text(new_token(), encoding="ascii")

    with pytest.raises(StartError, match="in the clear"):
        connect("io.example:7301", token_file=own)


def test_an_own_token_is_read_again_when_it_changes(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("first\n", encoding="ascii")
    token = OwnToken(own)
    now = [0.0]
    token._watch = FileWatch(own, clock=lambda: now[0])

    own.write_text("second\n", encoding="ascii")
    assert token.header == "Bearer first"
    now[0] += 2
    assert token.header == "Bearer second"
