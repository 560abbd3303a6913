"""What callers are told when a call fails, over a real connection."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import error_details_pb2

from lodestone.embed.v1 import embed_service_pb2 as embed_pb2
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.io.v1 import scan_service_pb2 as scan_pb2
from lodestone.io.v1 import scan_service_pb2_grpc as scan_grpc
from lodestone.io.v1 import snippet_service_pb2 as snippet_pb2
from services.runtime import errors
from services.runtime.errors import LodestoneError
from services.runtime.status import read_status, status_of
from services.runtime.validation import MAX_TOLD_FIELDS, validate
from tests.unit.runtime.running import eventually
from tests.unit.runtime.sample_calls import (
    NO_MESSAGES,
    OPTIONS,
    TREE,
    drained,
    embed,
    embed_stream,
    failure_of,
    scan,
    send_raw,
)
from tests.unit.runtime.sample_service import SECRET

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tests.unit.runtime.running import Running

_EMBED = "/lodestone.embed.v1.EmbedService"


async def test_a_request_that_breaks_a_rule_names_each_wrong_field(service: Running) -> None:
    """No value of the request comes back: it may be the content of a file."""
    stub = embed_grpc.EmbedServiceStub(service.channel)

    failure = await failure_of(stub.Embed(embed_pb2.EmbedRequest(model=SECRET, texts=["a"])))

    violations = failure.detail(error_details_pb2.BadRequest).field_violations
    assert failure.code == "INVALID_ARGUMENT"
    assert failure.info.reason == "ERROR_REASON_INVALID_REQUEST"
    assert failure.info.domain == "embed.lodestone"
    assert {item.field for item in violations} == {"model", "options"}
    assert all(item.description for item in violations)
    assert SECRET not in str(failure)


async def test_a_list_names_the_place_of_the_wrong_item(service: Running) -> None:
    files = [scan_pb2.KnownFile(path="a"), scan_pb2.KnownFile(path="")]
    request = scan_pb2.CheckFilesRequest(tree=TREE, files=files)

    failure = await failure_of(scan_grpc.ScanServiceStub(service.channel).CheckFiles(request))

    violations = failure.detail(error_details_pb2.BadRequest).field_violations
    assert [item.field for item in violations] == ["files[1].path"]


def test_a_rule_over_a_whole_request_is_told_as_one_of_the_request() -> None:
    """Red when such a rule, which names no field, ends the call as an error of the server's."""
    request = snippet_pb2.SnippetRef(path="a", start_byte=2, end_byte=1, file_digest=bytes(32))

    with pytest.raises(errors.InvalidRequestError) as raised:
        validate(request)

    assert raised.value.metadata == {"request": "start_byte must not be after end_byte"}


async def test_many_wrong_items_still_make_a_status_that_arrives(service: Running) -> None:
    """A client refuses trailing metadata above 8 KiB, and would see another code."""
    files = [scan_pb2.KnownFile() for _ in range(900)]
    request = scan_pb2.CheckFilesRequest(tree=TREE, files=files)

    failure = await failure_of(scan_grpc.ScanServiceStub(service.channel).CheckFiles(request))

    assert failure.code == "INVALID_ARGUMENT"
    assert "900 problems" in failure.message
    violations = failure.detail(error_details_pb2.BadRequest).field_violations
    assert len(violations) == MAX_TOLD_FIELDS


async def test_of_a_large_request_the_first_wrong_item_is_told(service: Running) -> None:
    """A message of 2 MB has room for a million, and a minute or two would go to find them all.

    Red, by what is told and by eleven seconds, with all violations collected whatever the size.
    """
    request = runs_pb2.CreateIndexRunRequest(parent="workspaces/w", paths=[""] * 100_000)

    with pytest.raises(errors.InvalidRequestError) as raised:
        validate(request)

    assert list(raised.value.metadata) == ["parent"]


async def test_a_wrong_message_inside_a_stream_ends_the_stream(service: Running) -> None:
    stub = embed_grpc.EmbedServiceStub(service.channel)
    received: list[Any] = []

    failure = await failure_of(
        drained(stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest(id=1)])), received)
    )

    assert failure.code == "INVALID_ARGUMENT"
    assert failure.info.reason == "ERROR_REASON_INVALID_REQUEST"
    assert service.app.events[-1] == "embed stream closed"


RUNTIME_ERRORS = [
    kind for kind in LodestoneError.__subclasses__() if kind.__module__ == LodestoneError.__module__
]
"""Those of the runtime alone: services that were imported before add their own."""


@pytest.mark.parametrize("kind", RUNTIME_ERRORS, ids=lambda kind: kind.__name__)
def test_each_error_keeps_its_code_reason_and_metadata(kind: type[LodestoneError]) -> None:
    error = kind("What happened.", metadata={"key": "value"}, retry_after_seconds=1.5)

    told = read_status(status_of(error, "io.lodestone"))

    assert (told.code, told.reason, told.message) == (kind.code.value, kind.reason, error.message)
    assert told.retry_after_seconds == 1.5
    if kind is not errors.InvalidRequestError:  # its metadata are the fields of BadRequest
        assert told.metadata == {"key": "value"}


async def test_an_error_of_ours_arrives_with_all_that_it_carries(service: Running) -> None:
    failure = await failure_of(embed(service.channel, "busy"))

    delay = failure.detail(error_details_pb2.RetryInfo).retry_delay
    assert failure.code == "RESOURCE_EXHAUSTED"
    assert failure.message == "Later."
    assert failure.info.reason == "ERROR_REASON_OVERLOADED"
    assert dict(failure.info.metadata) == {"limit": "1"}
    assert delay.ToMilliseconds() == 1500


async def test_an_unexpected_error_tells_a_trace_id_and_none_of_its_text(
    service: Running, spans: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text is neither in the status, nor in the log, nor in a span; its place is in the log."""
    failure = await failure_of(embed(service.channel, "crash"))

    ended = spans.get_finished_spans()
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert failure.code == "INTERNAL"
    assert failure.info.reason == "ERROR_REASON_INTERNAL"
    assert failure.info.metadata["trace_id"] == format(ended[0].context.trace_id, "032x")
    assert (line["event"], line["trace_id"]) == ("call_failed", failure.info.metadata["trace_id"])
    assert line["error"][0]["type"] == "builtins.RuntimeError"
    assert "runtime/sample_service.py" in line["error"][0]["frames"][-1]
    assert SECRET not in f"{failure}{line}{[span.to_json() for span in ended]}"


async def test_a_method_that_is_not_built_says_so(service: Running) -> None:
    files = [scan_pb2.KnownFile(path="a")]
    request = scan_pb2.CheckFilesRequest(tree=TREE, files=files)

    failure = await failure_of(scan_grpc.ScanServiceStub(service.channel).CheckFiles(request))

    assert failure.code == "UNIMPLEMENTED"
    assert failure.info.reason == "ERROR_REASON_NOT_IMPLEMENTED"
    assert failure.info.metadata["method"] == "/lodestone.io.v1.ScanService/CheckFiles"


async def test_an_error_out_of_a_task_group_counts_as_the_error_itself(service: Running) -> None:
    failure = await failure_of(embed(service.channel, "group"))

    assert failure.code == "NOT_FOUND"
    assert failure.info.reason == "ERROR_REASON_NOT_FOUND"


async def test_a_name_that_is_not_utf8_does_not_break_the_status(service: Running) -> None:
    failure = await failure_of(embed(service.channel, "foreign"))

    assert failure.code == "NOT_FOUND"
    assert failure.message == "No caf?."
    assert failure.info.metadata["path"] == "caf?.py"


@pytest.mark.parametrize("method", ["Embed", "EmbedStream"])
@pytest.mark.parametrize("data", NO_MESSAGES)
async def test_bytes_that_are_no_message_are_an_invalid_request(
    service: Running, method: str, data: bytes
) -> None:
    """Red when a deserialiser raises: UNKNOWN with Python's words, and nothing is counted."""
    failure = await failure_of(send_raw(service.channel, f"{_EMBED}/{method}", data))

    assert failure.code == "INVALID_ARGUMENT"
    assert failure.info.reason == "ERROR_REASON_INVALID_REQUEST"
    assert failure.message.startswith("The request cannot be read")
    assert (await embed(service.channel, "echo")).results


async def test_a_stream_answers_what_came_before_bytes_that_are_no_message(
    service: Running,
) -> None:
    received: list[Any] = []
    good = embed_pb2.EmbedStreamRequest(
        id=7, model="models/echo", options=OPTIONS, text="a"
    ).SerializeToString()

    failure = await failure_of(
        send_raw(service.channel, f"{_EMBED}/EmbedStream", good, NO_MESSAGES[0], got=received)
    )

    assert failure.code == "INVALID_ARGUMENT"
    assert len(received) == 1


async def test_an_error_with_very_long_texts_is_cut_and_arrives(service: Running) -> None:
    failure = await failure_of(embed(service.channel, "long"))

    assert failure.code == "NOT_FOUND"
    assert failure.message.endswith("...")
    assert failure.info.metadata["key0"].endswith("...")


async def test_a_stream_that_fails_after_some_messages_delivers_them_first(
    service: Running,
) -> None:
    received: list[Any] = []

    failure = await failure_of(drained(scan(service.channel, "missing"), received))

    assert [item.files[0].path for item in received] == ["a.py", "b.py"]
    assert (failure.code, failure.info.reason) == ("NOT_FOUND", "ERROR_REASON_NOT_FOUND")
    assert service.app.events[-1] == "scan closed"


async def test_an_abort_by_hand_inside_a_stream_keeps_its_code(service: Running) -> None:
    received: list[Any] = []

    failure = await failure_of(drained(scan(service.channel, "abort"), received))

    assert len(received) == 2
    assert (failure.code, failure.message) == ("ABORTED", "Aborted by hand.")


async def test_an_error_in_a_bidirectional_stream_closes_the_generator(service: Running) -> None:
    received: list[Any] = []

    failure = await failure_of(
        drained(embed_stream(service.channel, "a", "b", "crash", "c"), received)
    )

    assert failure.code == "INTERNAL"
    assert [item.id for item in received] == [0, 1]
    assert service.app.events[-1] == "embed stream closed"


async def test_a_generator_is_closed_when_its_caller_goes_away(service: Running) -> None:
    """Here the generator is suspended in `yield`, where no CancelledError reaches it."""
    call = scan(service.channel, "endless")
    await call.read()

    call.cancel()

    await eventually(lambda: "scan closed" in service.app.events)


async def test_a_cancelled_unary_call_stops_on_the_server(service: Running) -> None:
    call = asyncio.ensure_future(embed(service.channel, "wait"))
    await eventually(lambda: "inside" in service.app.events)

    call.cancel()

    await eventually(lambda: "cancelled" in service.app.events)
