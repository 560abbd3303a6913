"""What the command says of a call that a service refused."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from services.cli.rpc_errors import explain
from services.runtime.errors import InvalidRequestError
from services.runtime.exits import ExitCode
from services.runtime.status import status_of, trailers_of


class _Refused(grpc.RpcError):
    """A call that ended as a service ends it."""

    def __init__(self, error: InvalidRequestError) -> None:
        self._status = status_of(error, "indexer.lodestone")
        self._trailers = trailers_of(error, self._status, failed_before=0)

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INVALID_ARGUMENT

    def details(self) -> str:
        return str(self._status.message)

    def trailing_metadata(self) -> Any:
        return self._trailers


@pytest.mark.parametrize(
    ("message", "fields", "told"),
    [
        (
            "A glob of paths ends in an open escape: write a backslash as two.",
            {"filter.paths": "open escape"},
            "A glob of paths ends in an open escape: write a backslash as two. (INVALID_REQUEST)",
        ),
        (
            "The request breaks a rule: query: is too long (2 problems in all)",
            {"query": "is too long", "limit": "is too large"},
            "query: is too long; limit: is too large (INVALID_REQUEST)",
        ),
        ("The path holds NUL.", {}, "The path holds NUL. (INVALID_REQUEST)"),
    ],
)
def test_a_refused_call_says_what_to_do(message: str, fields: dict[str, str], told: str) -> None:
    """Red when what is wrong with a field takes the place of what the service says of it."""
    error = explain(_Refused(InvalidRequestError(message, metadata=fields)))

    assert (error.code, error.message) == (ExitCode.USAGE, told)
