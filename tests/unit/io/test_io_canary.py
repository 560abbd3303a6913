"""No error and no line of the log tells where files lie or what is in them (T13).

Words that nobody may see stand in the content of files, in their names, and in a folder above the
root; every method of io is driven into errors. A path under the tree may come back in the metadata
as its caller wrote it, and nowhere else. Red with an error's text (`str(OSError)`) put into a
message, a file's bytes into an error, and a path into a log event.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import status_pb2

from lodestone.io.v1 import (
    edit_service_pb2,
    edit_service_pb2_grpc,
    parse_service_pb2,
    parse_service_pb2_grpc,
    root_service_pb2,
    root_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    snippet_service_pb2,
    snippet_service_pb2_grpc,
    tree_pb2,
    watch_service_pb2,
    watch_service_pb2_grpc,
)
from services.io.content import file_digest
from services.runtime.status import DETAILS_KEY, read_status
from tests.unit.io.harness import serve, unprivileged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from google.protobuf.message import Message

ABOVE, NAMED, WITHIN = "canary-above-the-root", "canary-in-a-name", "canary within a file"
UUID = "7f1f2b9c-2d3c-4a87-9d2f-0a1b2c3d4e5f"
MODULES = (
    edit_service_pb2,
    parse_service_pb2,
    root_service_pb2,
    scan_service_pb2,
    snippet_service_pb2,
    watch_service_pb2,
)
STUBS: dict[str, Any] = {
    "EditService": edit_service_pb2_grpc.EditServiceStub,
    "ParseService": parse_service_pb2_grpc.ParseServiceStub,
    "RootService": root_service_pb2_grpc.RootServiceStub,
    "ScanService": scan_service_pb2_grpc.ScanServiceStub,
    "SnippetService": snippet_service_pb2_grpc.SnippetServiceStub,
    "WatchService": watch_service_pb2_grpc.WatchServiceStub,
}
GONE, OUT, BAD = f"gone-{NAMED}", f"../{NAMED}", f"bad-{NAMED}\0"
PATHS = [f"{kind}-{NAMED}" for kind in ("text", "closed", "binary", "large", "link", "pipe", "way")]
TOLD_BY_READS = (
    "CONTENT_CHANGED", "FILE_NOT_FOUND", "FILE_UNREADABLE", "FILE_NOT_REGULAR", "FILE_TOO_LARGE",
    "PATH_OUTSIDE_TREE", "RANGE_OUTSIDE_FILE", "NOT_FOUND", "INVALID_REQUEST",
)  # fmt: skip
PATHS += [GONE, OUT, f"/etc/{NAMED}", f"way-{NAMED}/x", f"locked-{NAMED}/x", "x" * 4096]


def methods() -> Iterator[tuple[str, str, type[Message], bool]]:
    """Yields service, method, request and whether the answer is a stream, for every method."""
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = getattr(module, method.input_type.name)
                yield service.name, method.name, request, method.server_streaming


def make_tree(place: Path) -> Path:
    top = place / ABOVE / "tree"
    top.mkdir(parents=True)
    text = f'"""{WITHIN}"""\n'
    for kind, content in {
        "text": text.encode(), "closed": text.encode(), "binary": b"\0" + text.encode(),
        "large": text.encode() * 200,
    }.items():  # fmt: skip
        (top / f"{kind}-{NAMED}").write_bytes(content)
    (top / f"closed-{NAMED}").chmod(0)
    (top / f"locked-{NAMED}").mkdir(0o000)
    (top / f"link-{NAMED}").symlink_to(place / ABOVE / "nowhere")
    (top / f"way-{NAMED}").symlink_to(place / ABOVE)
    os.mkfifo(top / f"pipe-{NAMED}")
    return top


def absolute_paths(top: Path) -> list[str]:
    """Returns folders that a caller may ask to add; it knows them, and may be told of them."""
    return [f"{top.parent}/none", f"{top}/{PATHS[0]}", str(top), "/etc", "/", "x"]


def requests(name: str, top: Path) -> list[dict[str, Any]]:
    """Returns requests that a method cannot or may not fulfil, as fields."""
    tree = tree_pb2.Tree(root="roots/test")
    trees = [tree_pb2.Tree(root="roots/test", directory=path[:4096]) for path in PATHS]
    trees.append(tree_pb2.Tree(root="roots/none"))
    text = f'"""{WITHIN}"""\n'.encode()
    digests = (bytes(32), file_digest(text), file_digest(b"\0" + text))
    refs = [
        snippet_service_pb2.SnippetRef(path=path, end_byte=end, file_digest=digest)
        for path in PATHS
        for digest in digests
        for end in (3, 10_000)
    ]
    contents = [
        snippet_service_pb2.ContentRef(
            path=ref.path,
            segments=[parse_service_pb2.ByteRange(end_byte=ref.end_byte)],
            file_digest=ref.file_digest,
            content_hash=bytes(32),
        )
        for ref in refs
    ]
    edits = [edit_service_pb2.Edit(ref=ref, replacement=b"x") for ref in refs]
    edit = {"request_id": UUID, "tree": tree}
    wrong_and_right: Any = (0, root_service_pb2.SYMLINK_POLICY_DENY)
    of_tree = [{"tree": t} for t in trees]
    wrong: dict[str, list[dict[str, Any]]] = {
        "GetRoot": [{"name": "roots/none"}, {"name": NAMED}],
        "ListRoots": [{"page_token": f"{NAMED}/"}],
        "CreateRoot": [
            {"root_id": "new", "root": root_service_pb2.Root(path=path, symlink_policy=policy)}
            for path in absolute_paths(top)
            for policy in wrong_and_right
        ],
        "DeleteRoot": [{"name": "roots/test"}, {"name": "roots/none"}],
        "ScanTree": [*of_tree, {"tree": tree, "include": [f"[{NAMED}"]}, {"tree": tree}],
        "ParseFiles": [
            {"tree": t, "files": [parse_service_pb2.FileToParse(path=p) for p in PATHS]}
            for t in (tree, *trees)
        ],
        "ListLanguages": [{"page_token": NAMED}],
        "ReadSnippets": [{"tree": t, "refs": refs} for t in (tree, *trees)]
        + [{"tree": tree, "refs": [snippet_service_pb2.SnippetRef(path=BAD, start_byte=1)]}],
        "ReadContents": [{"tree": t, "refs": contents} for t in (tree, *trees)],
        "ApplyEdits": [{**edit, "edits": [e]} for e in edits]
        + [{**edit, "tree": t, "edits": edits[:1]} for t in trees],
        "CreateFile": [{**edit, "path": path, "content": b"x"} for path in PATHS],
        "WatchTree": [*of_tree, {"tree": tree, "resume_token": NAMED}],
        "CheckFiles": [*of_tree],
    }
    return wrong.get(name, [{}])


async def statuses(call: Any, *, is_stream: bool) -> AsyncIterator[status_pb2.Status]:
    """Yields every status in the answers of a call, and the one that it ends with."""
    try:
        answers = [answer async for answer in call] if is_stream else [await call]
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata() or ()).get(DETAILS_KEY, b"")
        yield status_pb2.Status.FromString(details)
        yield status_pb2.Status(message=error.details())
        return
    for answer in answers:
        for status in inner_statuses(answer):
            yield status


def inner_statuses(message: Any) -> Iterator[status_pb2.Status]:
    if isinstance(message, status_pb2.Status):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                yield from inner_statuses(item)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that is reached without the rights of root, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.mark.slow
@pytest.mark.parametrize("root_parents", ["", "{top}"])
async def test_neither_errors_nor_the_log_tell_what_they_must_not(
    reachable: Path, capfd: pytest.CaptureFixture[str], root_parents: str
) -> None:
    top = make_tree(reachable)
    options: dict[str, Any] = {"max_file_bytes": 1024, "root_parents": root_parents.format(top=top)}
    reasons: defaultdict[str, set[str]] = defaultdict(set)
    async with serve(top, reachable / "s", **options) as channel:
        # Connected, and the parser started, before the rights of root go.
        parser: Any = parse_service_pb2_grpc.ParseServiceStub(channel)
        first = parse_service_pb2.ParseFilesRequest(**requests("ParseFiles", top)[0])
        assert [answer async for answer in parser.ParseFiles(first)]
        with unprivileged():
            for service, name, make, is_stream in methods():
                method = getattr(STUBS[service](channel), name)
                for fields in requests(name, top):
                    call = method(make(**fields), timeout=5)
                    async for status in statuses(call, is_stream=is_stream):
                        reasons[name].add(read_status(status).reason)
                        given = absolute_paths(top)[:4] if name == "CreateRoot" else []
                        check(status, given)
    out, err = capfd.readouterr()
    for word in (ABOVE, NAMED, WITHIN, str(reachable)):
        assert word not in out + err

    assert reasons["ReadSnippets"] >= {f"ERROR_REASON_{reason}" for reason in TOLD_BY_READS}
    for name in ("ScanTree", "ParseFiles", "ReadContents", "CreateRoot", "DeleteRoot"):
        assert len(reasons[name]) >= 2, reasons


def check(status: status_pb2.Status, given: Sequence[str]) -> None:
    """Asserts that a status tells nothing but, in its metadata, the path that the caller wrote."""
    told = read_status(status)
    assert told.reason != "ERROR_REASON_INTERNAL", status
    raw = status.SerializeToString()
    for path in given:
        raw = raw.replace(path.encode(), b"")
    for word in (ABOVE, WITHIN):
        assert word.encode() not in raw, status
    assert NAMED not in told.message, status
    for key, value in told.metadata.items():
        assert NAMED not in value or key in {"path", "resource"}, status
        assert not value.startswith("/") or key == "method" or value in {*PATHS, *given}, status
