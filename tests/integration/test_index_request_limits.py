"""T7: every limit of a request holds over the wire, and what breaks one changes nothing.

Red on a planted bug: the interceptor that holds requests to their rules taken out of the server.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest

from services.runtime.channel import connect
from services.runtime.status import read_rpc_error
from tests.integration.samples import write_tree
from tests.support.contract_fields import (
    SERVICES,
    dotted,
    end_of,
    fields_of,
    methods_of,
    set_field,
    start_call,
)
from tests.support.contract_requests import Resources, fill
from tests.support.request_limits import excesses_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.indexing import Indexing

_AT_ONCE = 4
"""Requests of 4 MiB that are under way: the limits of one message are not what is tested."""

_ROWS = """
SELECT (SELECT count(*) FROM workspaces), (SELECT count(*) FROM runs),
       (SELECT count(*) FROM nodes), (SELECT count(*) FROM models)
"""


def excessive(method: Any, resources: Resources) -> Iterator[tuple[str, str, Any]]:
    """Yields requests that are fine but for one field: its path, the name to be told, and it."""
    for path in fields_of(method.input_type):
        for name, values in excesses_of(path):
            request = fill(method, resources)
            set_field(request, path, values)
            yield dotted(path), name, request


@pytest.mark.parametrize("service", sorted(SERVICES))
async def test_a_request_over_a_limit_is_refused_by_name_and_does_nothing(
    services: Indexing, roots: Path, service: str
) -> None:
    write_tree(roots / "tree")
    await services.create("tree", "tree")
    run = await services.run("tree")
    resources = Resources("tree", run.name, "trees")
    before = await _rows(services.url)
    free = asyncio.Semaphore(_AT_ONCE)
    async with connect(f"unix:{services.folder}/{service}") as channel:

        async def ask(rpc: str, method: Any, field: str, name: str, request: Any) -> str | None:
            async with free:
                _, error = await end_of(start_call(channel, rpc, method, request, seconds=30))
            if error is None:
                return f"{rpc} takes {field}"
            told = read_rpc_error(error)
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT and name in told.fields:
                return None
            return f"{rpc} {field}: {error.code().name} {told.reason} {dict(told.fields)}"

        wrong, asked = [], 0
        for rpc, method in methods_of(service):
            answers = await asyncio.gather(
                *(ask(rpc, method, *each) for each in excessive(method, resources))
            )
            wrong += [answer for answer in answers if answer is not None]
            asked += len(answers)
    assert wrong == []
    assert asked >= 20
    assert await _rows(services.url) == before


async def _rows(url: str) -> tuple[int, ...]:
    connection = await asyncpg.connect(url)
    try:
        return tuple(await connection.fetchrow(_ROWS))
    finally:
        await connection.close()
