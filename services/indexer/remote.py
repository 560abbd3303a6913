"""Errors of other services, in the indexer's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer.errors import TreeUnavailableError
from services.indexer.model import Failure
from services.runtime.errors import DependencyUnavailableError
from services.runtime.status import RemoteError, read_rpc_error, read_status

if TYPE_CHECKING:
    import grpc
    from google.rpc import status_pb2

_DOWN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"})
_REFUSED = frozenset({"ERROR_REASON_UNAUTHENTICATED", "ERROR_REASON_FORBIDDEN"})
"""Reasons of a service that does not accept the indexer's token, as while tokens are changed."""
_BROKEN = frozenset({"INTERNAL", "UNKNOWN"})
"""Codes of a connection that breaks off, or of a proxy, where no service told a reason."""
_OF_THE_TREE = frozenset({"NOT_FOUND", "PERMISSION_DENIED", "FAILED_PRECONDITION"})
"""Codes with which io fails a call whose tree, or root, is not there: of its files it says nothing.
"""
_RETRYABLE = frozenset({*_DOWN, "ABORTED"})


def call_failure(error: grpc.aio.AioRpcError) -> Failure:
    """Returns why a whole call failed."""
    return _failure(read_rpc_error(error))


def files_failure(error: grpc.aio.AioRpcError) -> Failure:
    """Returns why a call to io for files or texts failed as a whole, which each of them is told.

    Raises:
        TreeUnavailableError: it says nothing of them, as their folder is not there.
        DependencyUnavailableError: nor when io does not answer.
    """
    raise_unavailable(error, "io")
    failure = call_failure(error)
    if read_rpc_error(error).code in _OF_THE_TREE:
        raise TreeUnavailableError(f"The folder cannot be read: {failure.message}") from None
    return failure


def item_failure(status: status_pb2.Status) -> Failure:
    """Returns why one item of a call failed."""
    return _failure(read_status(status))


def _failure(remote: RemoteError) -> Failure:
    return Failure(
        reason=remote.reason or f"ERROR_REASON_{remote.code}",
        message=remote.message or remote.code,
        retryable=remote.code in _RETRYABLE,
    )


def raise_unavailable(error: grpc.aio.AioRpcError, dependency: str) -> None:
    """Raises DependencyUnavailableError when a call failed because the service is not there.

    Overload, missed deadlines and a token that is refused count too: the work is as good as before,
    only later. An error that the service itself told has its `reason` in the metadata: the service
    is there.
    """
    remote = read_rpc_error(error)
    broken = remote.code in _BROKEN and not remote.reason
    if not broken and remote.code not in _DOWN and remote.reason not in _REFUSED:
        return
    metadata = {"dependency": dependency, "code": remote.code}
    message = f"The {dependency} service does not answer ({remote.code.lower()})."
    if remote.reason:
        metadata["reason"] = remote.reason
        message = f"The {dependency} service cannot serve now: {remote.message}"
    raise DependencyUnavailableError(
        message, metadata=metadata, retry_after_seconds=remote.retry_after_seconds
    ) from None
