"""T7, T8, T10: any message that can be built gets a documented answer, and no harm is done.

Messages are drawn from the contracts themselves: hostile strings, numbers at their bounds, enums
that do not exist, resources that do and do not. What is meant well is drawn often enough for calls
to come far. Red on a planted bug: a path filter put into SQL by hand.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor

from lodestone.error.v1 import error_reason_pb2
from services.runtime.channel import connect
from services.runtime.status import read_rpc_error
from tests.integration.oracle import broken_rules
from tests.integration.samples import write_tree
from tests.support.contract_fields import SERVICES, end_of, methods_of, start_call

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.indexing import Indexing

_REASONS = frozenset(error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name)
_MESSAGES = 25
_CALL_SECONDS = 1.5
_DEEPEST = 4
_UNDOCUMENTED = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}

HOSTILE = (
    "",
    " ",
    "\x00",
    "'; DROP TABLE nodes; --",
    '"$1"',
    "%",
    "_\\",
    "{}",
    "[[[[",
    "(((((a+)+)+)+)+$",
    "**/**/**/**",
    "../../etc/passwd",
    "/etc/passwd",
    "a//b",
    "\u202e\u0000\uffff",
    "e\u0301" * 50,
    "<|endoftext|>",
    "-",
    "workspaces/-",
    "workspaces/" + "x" * 500,
    "NaN",
    "1e999",
    "x" * 5000,
)
MEANT_WELL = {
    "parent": ("workspaces/tree",),
    "name": ("workspaces/tree", "models/hashing", "roots/trees"),
    "root": ("roots/trees",),
    "path": ("code.py", "notes.md"),
    "query": ("parse the body",),
    "model": ("models/hashing",),
    "request_id": ("0b0b0b0b-0000-4000-8000-00000000000a",),
}
NUMBERS = (0, 1, 2, 10, 1000, 10**9, 2**31 - 1, 2**32 - 1, 2**63 - 1, -1, -(2**31))
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def draw_message(draw: random.Random, descriptor: Any, depth: int = 0) -> Any:
    """Returns a message of a type with some of its fields set."""
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if depth >= _DEEPEST or draw.random() < 0.3:
            continue
        if field.is_repeated:
            values = [_draw_value(draw, field, depth) for _ in range(draw.randrange(4))]
            if not (field.message_type and field.message_type.GetOptions().map_entry):
                getattr(message, field.name).extend(values)
        elif field.message_type:
            getattr(message, field.name).CopyFrom(_draw_value(draw, field, depth))
        else:
            setattr(message, field.name, _draw_value(draw, field, depth))
    return message


def _draw_value(draw: random.Random, field: Any, depth: int) -> Any:
    if field.message_type:
        return draw_message(draw, field.message_type, depth + 1)
    if field.enum_type:
        return draw.choice([0, 1, 2, 3, 99])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if field.cpp_type in _INTEGERS:
        low, high = _INTEGERS[field.cpp_type]
        return min(max(draw.choice(NUMBERS), low), high)
    if field.cpp_type in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return draw.choice([0.0, -1.0, 1e300, float("nan"), float("inf")])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw.choice([b"", b"\x00", draw.randbytes(32), draw.randbytes(5000)])
    meant = MEANT_WELL.get(field.name, ())
    return draw.choice(meant) if meant and draw.random() < 0.7 else draw.choice(HOSTILE)


async def ask(channel: grpc.aio.Channel, name: str, descriptor: Any, request: Any) -> str:
    """Returns how a call ended: a code, with its reason if it has one."""
    call = start_call(channel, name, descriptor, request, seconds=_CALL_SECONDS)
    _, error = await end_of(call)
    if error is None:
        return "OK"
    if error.code() in _UNDOCUMENTED:
        return f"{error.code().name}: {error.details()}"
    if error.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
        return error.code().name
    reason = read_rpc_error(error).reason
    known = reason in _REASONS
    return error.code().name if known else f"UNDOCUMENTED {error.code().name} {reason!r}"


@pytest.mark.parametrize("service", sorted(SERVICES))
async def test_any_message_gets_a_documented_answer(
    services: Indexing, roots: Path, service: str
) -> None:
    write_tree(roots / "tree")
    await services.create("tree", "tree")
    await services.succeed("tree")
    wrong: list[str] = []
    ended: dict[str, int] = {}
    async with connect(f"unix:{services.folder}/{service}") as channel:
        for name, method in methods_of(service):
            draw = random.Random(name)
            requests = [draw_message(draw, method.input_type) for _ in range(_MESSAGES)]
            answers = await asyncio.gather(
                *(ask(channel, name, method, request) for request in requests)
            )
            for request, answer in zip(requests, answers, strict=True):
                code = answer.partition(":")[0]
                ended[code] = ended.get(code, 0) + 1
                if code in {"INTERNAL", "UNKNOWN", "UNAVAILABLE"} or "UNDOC" in code:
                    wrong.append(f"{name} {answer} for {request}")
        assert wrong == []
        assert ended["OK"] > 10
        assert ended["INVALID_ARGUMENT"] > 10

    connection = await asyncpg.connect(services.url)
    try:
        assert await connection.fetchval("SELECT to_regclass('nodes') IS NOT NULL")
    finally:
        await connection.close()
    if service != "indexer":
        assert await services.search("tree", "parse")
    assert [rule for rule in await broken_rules(services.url) if not rule.startswith("I6")] == []
