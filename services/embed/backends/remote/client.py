"""One request to an embeddings API of OpenAI's form, and nothing but its answer or its failure."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx2

from services.embed.backends.remote.answers import (
    Answer,
    MalformedAnswerError,
    most_bytes,
    read_answer,
)
from services.embed.backends.remote.failures import CallFailedError, FailureKind, kind_of_status
from services.embed.backends.remote.key_file import KeyFile, KeyFileError
from services.embed.backends.remote.network import DeadlineNetwork
from services.embed.backends.remote.retrying import retry_after_seconds
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.backends.remote.endpoint import Endpoint

_CONNECT_SECONDS = 5.0
_SPARE_CONNECTIONS = 1
"""The question whether a provider is well may go beside the requests that run."""


class EmbeddingsClient:
    """Sends texts and reads vectors. Threads share it.

    It asks for base64 (a third of the bytes of numbers in JSON) until a server refuses that.
    Redirects are not followed, and proxies of the environment not used: either would send key and
    texts to somebody whom the settings do not name.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._key_file = KeyFile(endpoint.key_file) if endpoint.key_file else None
        self._url = f"{endpoint.url}/embeddings"
        self._takes_base64: bool | None = None
        self.dimensions = endpoint.dimensions
        connections = endpoint.concurrency + _SPARE_CONNECTIONS
        transport = httpx2.HTTPTransport(
            trust_env=False,
            proxy=endpoint.proxy or None,
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections
            ),
        )
        self._network = DeadlineNetwork()
        # The pool takes it as an argument, which its owner here does not pass on.
        transport._pool._network_backend = self._network  # noqa: SLF001
        self._http = httpx2.Client(trust_env=False, follow_redirects=False, transport=transport)

    def embed(self, texts: Sequence[str], *, timeout_seconds: float) -> Answer:
        """Returns one row per text; sends one request, or two while it is not known what is taken.

        Raises:
            CallFailedError: there is no answer that can be used.
        """
        deadline = time.monotonic() + timeout_seconds
        if self._takes_base64 is False:
            return self._send(texts, "float", deadline)
        try:
            answer = self._send(texts, "base64", deadline)
        except CallFailedError as failure:
            if failure.kind is not FailureKind.REFUSED or self._takes_base64:
                raise
            answer = self._send(texts, "float", deadline)
            self._takes_base64 = False
            return answer
        self._takes_base64 = True
        return answer

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def _send(self, texts: Sequence[str], encoding: str, deadline: float) -> Answer:
        left = max(deadline - time.monotonic(), 0.001)
        try:
            with (
                self._network.until(deadline),
                self._http.stream(
                    "POST",
                    self._url,
                    content=self._body(texts, encoding),
                    headers=self._headers(),
                    timeout=httpx2.Timeout(left, connect=min(left, _CONNECT_SECONDS)),
                ) as response,
            ):
                if response.status_code != HTTPStatus.OK:
                    raise CallFailedError(
                        kind_of_status(response.status_code),
                        retry_after_seconds=retry_after_seconds(
                            response.headers.get("retry-after"),
                            sent_at=response.headers.get("date"),
                        ),
                    )
                limit = most_bytes(len(texts), self.dimensions)
                body = _read(response, limit)
            return read_answer(body, count=len(texts), dimensions=self.dimensions)
        except MalformedAnswerError:
            raise CallFailedError(FailureKind.MALFORMED) from None
        except httpx2.HTTPError as error:
            raise CallFailedError(_kind_of(error)) from None

    def _body(self, texts: Sequence[str], encoding: str) -> bytes:
        message: dict[str, Any] = {
            "model": self._endpoint.model,
            "input": list(texts),
            "encoding_format": encoding,
        }
        if self._endpoint.dimensions:
            message["dimensions"] = self._endpoint.dimensions
        return json.dumps(message, ensure_ascii=False).encode()

    def _headers(self) -> dict[str, str]:
        # An answer that is not compressed is as large as what was read of it.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key_file is not None:
            try:
                headers["Authorization"] = f"Bearer {self._key_file.read()}"
            except KeyFileError as error:
                get_logger().warning("remote_key_refused", why=str(error))
                raise CallFailedError(FailureKind.DENIED) from None
        return headers


def _read(response: httpx2.Response, limit: int) -> bytes:
    """Returns the body, if it ends below the limit."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise MalformedAnswerError("it is compressed")
    parts: list[bytes] = []
    size = 0
    for part in response.iter_raw():
        size += len(part)
        if size > limit:
            raise MalformedAnswerError("it is too large")
        parts.append(part)
    return b"".join(parts)


def _kind_of(error: httpx2.HTTPError) -> FailureKind:
    match error:
        case httpx2.ConnectError() | httpx2.ConnectTimeout() | httpx2.ProxyError():
            return FailureKind.UNREACHABLE
        case httpx2.TimeoutException():
            return FailureKind.TIMED_OUT
        case _:
            return FailureKind.CUT_OFF
