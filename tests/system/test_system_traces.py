"""One trace tells of a batch in all three services, as a real collector receives it over OTLP."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from lodestone.indexer.v1.index_run_service_pb2 import IndexRun
from services.cli.indexer import Indexer
from services.cli.report import state_name
from services.runtime import failpoints
from services.runtime.exits import ExitCode
from tests.support.collector import collecting
from tests.support.stack import finish, lodestone, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.collector import Collector
    from tests.support.stack import Finished, Lodestone

_INDEXER, _IO, _EMBED = "lodestone-indexer", "lodestone-io", "lodestone-embed"
_INDEX_COMMAND = ("lodestone-cli", "lodestone.cli.index")
_SEARCH_COMMAND = ("lodestone-cli", "lodestone.cli.search")
_READ = "lodestone.io.v1.SnippetService/ReadContents"
_EMBED_CALL = "lodestone.embed.v1.EmbedService/Embed"
_CREATE = "lodestone.indexer.v1.IndexRunService/CreateIndexRun"
_SEARCH = "lodestone.indexer.v1.SearchService/SearchNodes"
_SECRET_TEXT = "quagga_of_the_trace"
_SECRET_QUERY = "okapi behind the trace"
_SLOW = {"INDEXER_EMBED_BATCH_NODES": "16", "INDEXER_EMBED_BATCHES_IN_FLIGHT": "2"}
_IN_A_BATCH = ["lodestone.cli.index", "lodestone.indexer.run", "lodestone.indexer.batch"]


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector and where it listens."""
    with collecting() as made:
        yield made


def test_a_batch_and_a_search_are_one_trace_each_through_all_services(
    collector: tuple[Collector, str], flask: Path
) -> None:
    """Red without the headers of calls, without links of forwards, with a query as attribute."""
    received, endpoint = collector
    flask.joinpath("quagga.py").write_text(f"def {_SECRET_TEXT}():\n    return 1\n")
    for product in lodestone(EMBED_MODEL="hashing", OTLP_ENDPOINT=endpoint):
        product.index(flask)
        drawn = product.run("trace", "--json")
        product.search(_SECRET_QUERY, flask)
        assert product.run("down").code == 0  # sends what is left

    asked = (_INDEXER, _CREATE)
    run, batch = (_INDEXER, "lodestone.indexer.run"), (_INDEXER, "lodestone.indexer.batch")
    fetch, embed = (_INDEXER, "lodestone.indexer.fetch"), (_INDEXER, "lodestone.indexer.embed")
    from_command = [_INDEX_COMMAND, asked]
    embedding = [*from_command, run, batch, embed, (_INDEXER, _EMBED_CALL), (_EMBED, _EMBED_CALL)]
    searching = [
        _SEARCH_COMMAND,
        (_INDEXER, _SEARCH),
        (_INDEXER, _EMBED_CALL),
        (_EMBED, _EMBED_CALL),
    ]
    reading = [*from_command, run, batch, fetch, (_INDEXER, _READ), (_IO, _READ)]
    assert reading in received.paths(_IO, _READ)
    commits = received.paths(_INDEXER, "lodestone.indexer.commit")
    assert [*from_command, run, batch, (_INDEXER, "lodestone.indexer.commit")] in commits
    wait = (_EMBED, "lodestone.embed.wait")
    for inside in ((_EMBED, "lodestone.embed.tokenize"), wait):
        found = received.paths(*inside)
        assert [*embedding, inside] in found
        assert [*searching, inside] in found

    forwards = received.named(_EMBED, "lodestone.embed.forward")
    linked = [received.spans[link.span_id] for item in forwards for link in item.span.links]
    assert all(item.span.links and not item.span.parent_span_id for item in forwards)
    served = [received.path(item) for item in linked]
    assert [*embedding, wait] in served
    assert [*searching, wait] in served
    assert all(path[-1] == wait for path in served)

    _check_drawn(drawn, received)

    sent = b"".join(received.requests)
    assert _SECRET_TEXT.encode() not in sent
    assert _SECRET_QUERY.encode() not in sent


def _check_drawn(drawn: Finished, received: Collector) -> None:
    """Holds what `lodestone trace` says of the run to what the collector got of it."""
    assert drawn.code == 0, drawn.stderr
    told = drawn.json
    command, start = (
        received.named("lodestone-cli", f"lodestone.cli.{name}")[0].span
        for name in ("index", "start")
    )
    assert told["trace_id"] == command.trace_id.hex()
    assert (told["missing_spans"], told["caller_known"]) == (0, True)
    whole = (command.end_time_unix_nano - command.start_time_unix_nano) / 1e9
    assert told["seconds"] == pytest.approx(whole, abs=1e-5)
    assert sum(row["own_seconds"] for row in told["path"]) == pytest.approx(whole, abs=1e-3)
    starting = (start.end_time_unix_nano - start.start_time_unix_nano) / 1e9
    rows = {(row["service"], row["name"]): row for row in told["path"]}
    assert rows["cli", "lodestone.cli.start"]["seconds"] == pytest.approx(starting, abs=1e-5)
    assert rows["indexer", "lodestone.indexer.run"]["depth"] == 1

    stages = {each["stage"]: each["spans"] for each in told["busy"]}
    every = {"scan", "parse", "plan", "fetch", "embed", "tokenize", "wait", "forward", "commit"}
    assert set(stages) == every
    assert stages["commit"] == len(received.named(_INDEXER, "lodestone.indexer.commit"))
    operations = {(each["service"], each["name"]): each for each in told["operations"]}
    for service, name in ((_IO, _READ), (_EMBED, "lodestone.embed.wait"), (_EMBED, _EMBED_CALL)):
        found = operations[service.removeprefix("lodestone-"), name]
        of_run = [
            each for each in received.named(service, name) if each.span.trace_id == command.trace_id
        ]
        assert found["spans"] == len(of_run)


def test_the_trace_of_a_run_that_failed_tells_where_and_why(large_tree: Path) -> None:
    """Red with spans that keep their exception's text, and with failures of the path alone."""
    for product in lodestone(
        EMBED_MODEL="hashing", INDEXER_DEPENDENCY_PATIENCE_SECONDS="1", **_SLOW
    ):
        run = _run_without_embed(product, large_tree)
        told, drawn = product.run("trace", run.name, "--json"), product.run("trace", run.name)
        written = b"".join(path.read_bytes() for path in product.folder.traces.iterdir())

    assert state_name(run) == "failed"
    assert told.json["run"]["error"]["reason"] == "ERROR_REASON_DEPENDENCY_UNAVAILABLE", told
    rows = {(row["name"], row["side"]): row for row in told.json["path"]}
    assert rows["lodestone.indexer.run", ""]["failed"] == 1
    failed = [each for each in told.json["failures"] if each["name"] == _EMBED_CALL]
    assert {(each["side"], each["error"]) for each in failed} == {("client", "UNAVAILABLE")}
    around = [*_IN_A_BATCH, "lodestone.indexer.embed"]
    assert [each["name"] for each in failed[0]["within"]] == around
    assert all(each["name"].startswith("lodestone.embed.v1.") for each in told.json["failures"])
    text = " ".join(drawn.stdout.split())
    assert "Run failed" in text
    assert "Error DEPENDENCY_UNAVAILABLE: The embed service does not answer" in text
    assert "indexer run > batch > embed > call EmbedService/Embed: UNAVAILABLE" in text
    assert "indexer ! run" in text
    assert b"ERROR_REASON_DEPENDENCY_UNAVAILABLE" in written
    for secret in (
        b"does not answer",
        b"stacktrace",
        str(large_tree).encode(),
        b"services/indexer",
    ):
        assert secret not in written, secret


def test_the_trace_of_a_run_that_failed_in_part_tells_where(flask: Path) -> None:
    """Every call from the sixth on meets a bug in embed, so that the nodes left fail one by one.

    Red with a stage that is fine when its texts failed, and with counts of the lowest spans alone.
    """
    failing = {failpoints.VARIABLE: "embed.forward.before=error@6+", failpoints.PERMISSION: "1"}
    settings = {name.removeprefix("LODESTONE_"): value for name, value in failing.items()}
    for product in lodestone(EMBED_MODEL="hashing", **_SLOW, **settings):
        index = product.run("index", str(flask), "--json")
        told, drawn = product.run("trace", "--json"), product.run("trace")

    report = index.json
    lost = report["nodes"]["failed"]
    assert report["nodes"]["embedded"] > 0
    assert lost > 0
    assert told.json["run"]["state"] == report["state"] == "succeeded_with_warnings"
    assert told.json["run"]["error"] is None
    found = {(each["service"], each["name"]): each for each in told.json["failures"]}
    stage = found[_INDEXER.removeprefix("lodestone-"), "lodestone.indexer.embed"]
    assert [each["name"] for each in stage["within"]] == _IN_A_BATCH
    assert stage["error"] == "ERROR_REASON_INTERNAL"
    assert lost / 2 < stage["items"] <= lost, "it counts texts, and nodes may share one"
    lowest = found[_EMBED.removeprefix("lodestone-"), _EMBED_CALL]
    assert lowest["error"] == "INTERNAL"
    text = " ".join(drawn.stdout.split())
    assert f"indexer run > batch > embed: INTERNAL ({stage['items']} failed" in text
    assert "call EmbedService/Embed > embed EmbedService/Embed: INTERNAL" in text


def _run_without_embed(product: Lodestone, tree: Path) -> IndexRun:
    """Returns a run in whose middle embed was killed, once it has ended."""
    assert product.run("up").code == 0
    command = product.start("index", str(tree), "--json")
    wait_until(lambda: _run(product).progress.nodes_embedded > 0, 60, "a batch is done")
    product.kill("embed")
    cut_off = finish(command)
    assert cut_off.code == ExitCode.UNAVAILABLE, cut_off
    wait_until(lambda: _run(product).HasField("end_time"), 60, "the run has ended")
    return _run(product)


def _run(product: Lodestone) -> IndexRun:
    with closing(Indexer(product.state.processes["indexer"].address)) as indexer:
        runs = indexer.list_runs("workspaces/-", 1)
    return runs[0] if runs else IndexRun()
