"""T13: no log line, no span and no status of any service holds what files and callers say.

A word that nobody may see again stands in the content of files, in questions and in texts that are
sent to be embedded. Logs are read at their most talkative. What a request names (a workspace, a
glob) may come back to its caller in the status, and nowhere else.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from services.runtime.channel import connect
from tests.faults.cluster import Cluster, Mode, caller, fetch, make_cluster
from tests.faults.trees import write_generated
from tests.support.contract_fields import (
    SERVICES,
    dotted,
    end_of,
    fields_of,
    methods_of,
    set_field,
    start_call,
)
from tests.support.contract_requests import Resources, fill, resource_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "heliotrope"
_NAME = "birds"
_SOURCE = f'''"""Module {CANARY}: about {CANARY}."""

import {CANARY}_import


class {CANARY.title()}:
    """Of {CANARY}."""

    def {CANARY}_method(self, {CANARY}_argument):
        return "{CANARY} text" + {CANARY}_argument
'''
_ASKED = {"query", "text", "texts", "content", "replacement", "queries", "documents"}
"""Fields of requests that hold what a status must not repeat, even to who sent it."""
_LEFT_OUT = {"WatchTree", "WatchIndexRun", "DeleteWorkspace", "UnloadModel"}
_LONG = f"{CANARY} " * 100_000
_WORD = re.compile(CANARY.encode(), re.IGNORECASE)


@pytest.fixture
def talkative(folder: Path, roots: Path, urls: tuple[str, str]) -> Iterator[Cluster]:
    """One of each service, with all levels of logs, and spans in files."""
    made = make_cluster(folder, roots, *urls, replicas=1)
    for member in made.members:
        member.extra = {
            "LODESTONE_LOG_LEVEL": "debug",
            "LODESTONE_TRACES_FOLDER": str(folder / "traces"),
        }
        member.start()
    yield made
    made.kill()


def _logs(cluster: Cluster) -> bytes:
    return b"\n".join(
        (cluster.folder / f"{member.name}.log").read_bytes() for member in cluster.members
    )


def _lines_with_the_word(cluster: Cluster) -> list[bytes]:
    """Returns the lines of logs and spans that tell what they must not, the beginning of each."""
    spans = [path.read_bytes() for path in (cluster.folder / "traces").rglob("*.jsonl")]
    lines = b"\n".join([_logs(cluster), *spans]).splitlines()
    return [line[:2000] for line in lines if _WORD.search(line)]


def _events(cluster: Cluster) -> set[str]:
    told = (line for line in _logs(cluster).splitlines() if line.startswith(b"{"))
    return {json.loads(line)["event"] for line in told}


def _span_names(cluster: Cluster) -> set[str]:
    names = set()
    for path in (cluster.folder / "traces").rglob("*.jsonl"):
        names |= set(re.findall(r'"name":\s*"([^"]+)"', path.read_text("utf-8")))
    return names


def _write(cluster: Cluster) -> Path:
    tree = write_generated(cluster.roots / _NAME, _NAME, files=4)
    (tree / "plain.py").write_text(_SOURCE, "utf-8")
    (tree / "broken.py").write_text(_SOURCE + f"def {CANARY}((((\n", "utf-8")
    (tree / "nul.py").write_bytes(_SOURCE.replace("text", "te\0xt").encode())
    (tree / "latin.py").write_bytes(_SOURCE.encode() + b"# \xff\xfe " + CANARY.encode())
    (tree / "long.md").write_text(f"# {CANARY}\n\n{CANARY * 100_000}\n", "utf-8")
    return tree


@pytest.mark.timeout(240)
async def test_runs_that_fail_and_searches_tell_nothing_of_what_files_hold(
    talkative: Cluster,
) -> None:
    """Red with an error's text in a line of the log, and with a text in a span's attribute."""
    tree = _write(talkative)
    async with caller(talkative) as calls:
        await calls.create(_NAME, _NAME)
        first = await calls.run(_NAME)
        assert first["state"].startswith("succeeded"), dict(first)
        hits = await calls.search(_NAME, f"where is {CANARY} text?")
        assert any(CANARY in hit.text.casefold() for hit in hits)

        for member, failing in (
            (talkative.embed, "embed.forward.before=error@1+"),
            (talkative.io, "io.read.before=error@1+,io.parse.after=error@2"),
            (talkative.indexers[0], "indexer.commit.before=error@1,indexer.fetch.after=error@2"),
        ):
            new = f"def {CANARY}_of_{member.name}():\n    return '{CANARY} of {member.name}'\n"
            (tree / f"{member.name}.py").write_text(new, "utf-8")
            member.kill()
            member.start(failing)
            await calls.run(_NAME, Mode.MODE_FULL)
            await _told(calls.search(_NAME, f"{CANARY} of {member.name}", patience_seconds=0))
            member.kill()
            member.start()
        await _refused_by_the_database(talkative, calls, tree)

        last = await calls.run(_NAME, Mode.MODE_FULL)
    kept = await fetch(
        talkative.url,
        "SELECT (SELECT string_agg(r::text, '') FROM runs r), "
        "(SELECT string_agg(o.error_reason || o.error_message, '') FROM run_outcomes o)",
    )

    assert last["state"].startswith("succeeded"), dict(last)
    assert _lines_with_the_word(talkative) == []
    assert CANARY not in str(tuple(kept[0])).casefold()
    assert {"run_crashed", "call_failed"} <= _events(talkative)
    spans = {"lodestone.indexer.run", "lodestone.io.v1.SnippetService/ReadContents"}
    assert spans | {"lodestone.embed.forward"} <= _span_names(talkative)


async def _refused_by_the_database(cluster: Cluster, calls: Any, tree: Path) -> None:
    """PostgreSQL's own error tells the row that it refuses, with what stands in it."""
    await fetch(
        cluster.url,
        "ALTER TABLE nodes ADD CONSTRAINT refused CHECK (qualified_name NOT LIKE '%refused%') "
        "NOT VALID",
    )
    (tree / "refused.py").write_text(f"def {CANARY}_refused():\n    return 1\n", "utf-8")
    run = await calls.run(_NAME)
    await fetch(cluster.url, "ALTER TABLE nodes DROP CONSTRAINT refused")
    assert run["state"] == "failed", dict(run)


async def _told(asking: Any) -> None:
    """Waits for a call; a status that tells the word fails the test."""
    told = ""
    try:
        await asking
    except grpc.aio.AioRpcError as error:
        told = f"{error!r} {error.trailing_metadata()!r}"
    assert CANARY not in told.casefold()


@pytest.mark.timeout(240)
async def test_no_request_comes_back_in_logs_spans_or_statuses(talkative: Cluster) -> None:
    """Every field of every method that takes free text, well and far too long.

    Red with a request in a line of the log, and with a query in the status of a refused one.
    """
    _write(talkative)
    async with caller(talkative) as calls:
        await calls.create("walked", _NAME)
        run = await calls.begin("walked")
        await calls.wait(run)
    names = Resources("walked", run.name, "trees", model="models/hashing-64")
    addresses = {
        "io": talkative.io.address,
        "embed": talkative.embed.address,
        "indexer": talkative.indexers[0].address,
    }
    asked, told = 0, []
    for service in SERVICES:
        async with connect(addresses[service]) as channel:
            for rpc, method in methods_of(service):
                if method.name in _LEFT_OUT:
                    continue
                for field, request in _requests(method, names):
                    call = start_call(channel, rpc, method, request, seconds=20)
                    _, error = await end_of(call)
                    asked += 1
                    if error is not None and _repeats(field, error):
                        told.append(f"{rpc} {field}: {error.code().name} {error.details()}")

    assert told == []
    assert asked >= 60
    assert _lines_with_the_word(talkative) == []


def _requests(method: Any, names: Resources) -> Iterator[tuple[str, Any]]:
    for path in fields_of(method.input_type):
        field = path[-1]
        is_text = field.type in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}
        if not is_text or resource_name(field, names) is not None:
            continue
        for text in (CANARY, _LONG, f"{CANARY}\0"):
            request = fill(method, names)
            value: Any = text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
            set_field(request, path, [value])
            yield dotted(path), request


def _repeats(field: str, error: grpc.aio.AioRpcError) -> bool:
    told = f"{error.details()} {error.trailing_metadata()!r}"
    return field.rpartition(".")[2] in _ASKED and CANARY in told.casefold()
