"""A provider as the service deals with it: paced, retried within bounds, left alone when dead."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from services.embed import metrics
from services.embed.backends.protocol import EngineDownError
from services.embed.backends.remote.circuit import Circuit, CircuitOpenError
from services.embed.backends.remote.failures import CallFailedError, FailureKind
from services.embed.backends.remote.rate_limit import RateLimit, WaitTooLongError
from services.embed.backends.remote.retrying import MOST_TRIES, RetryBudget, backoff_seconds
from services.embed.backends.remote.texts import BYTES_PER_ID
from services.embed.errors import RemoteModelUnavailableError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.backends.remote.answers import Answer
    from services.embed.backends.remote.client import EmbeddingsClient
    from services.embed.backends.remote.endpoint import Endpoint
    from services.embed.backends.remote.retrying import Clock

FAILURES_TO_OPEN: Final = 5
_HARMLESS_TEXT = "ok"
_HARMLESS_TOKENS = 1
_HARMLESS_SECONDS = 5.0
_DENIED_RETRY_SECONDS = 30.0
_SPECIAL_TOKENS = 8
"""Most tokens that a provider counts for a text beside those of its bytes."""
_LEAST_RETRY_SECONDS = 1.0


class TextsAtFaultError(Exception):
    """The provider is well, and does not embed these texts; fewer of them may go."""


class Provider:
    """Embeds texts with one model of a provider. Threads share it.

    When a request fails in a way that texts may cause (a crash of the server, a wrong answer, no
    answer in time), a harmless text tells whether the provider is well: one bad text must neither
    look like a dead provider, nor a dead provider like so many bad texts.
    """

    def __init__(
        self,
        client: EmbeddingsClient,
        endpoint: Endpoint,
        *,
        circuit: Circuit,
        clock: Clock = time.monotonic,
    ) -> None:
        self._client = client
        self._timeout_seconds = endpoint.timeout_seconds
        self._deadline_seconds = endpoint.deadline_seconds
        self._circuit = circuit
        self._clock = clock
        self._limit = RateLimit(
            requests_per_minute=endpoint.requests_per_minute,
            tokens_per_minute=endpoint.tokens_per_minute,
            clock=clock,
        )
        self._retries = RetryBudget()
        self._closing = threading.Event()
        self._closed = False
        self._told = metrics.Part(metrics.REMOTE_CIRCUIT_OPEN)
        self._telling = threading.Lock()

    def embed(self, texts: Sequence[str], *, tokens: int) -> Answer:
        """Returns one row per text. Blocks, never much longer than the deadline of the settings.

        Raises:
            RemoteModelUnavailableError: the provider does not answer, or does not let us.
            TextsAtFaultError: it answers, but not to these texts.
            EngineDownError: `stop` was called while it waited.
        """
        deadline = self._clock() + self._deadline_seconds
        self._retries.note_request()
        tries = 0
        while True:
            tries += 1
            try:
                return self._try_once(texts, tokens, deadline)
            except CallFailedError as failure:
                if not self._may_retry(failure, tries, deadline):
                    raise self._explained(failure, tries) from None

    def stop(self) -> None:
        """Ends waits; nothing is sent any more."""
        self._closing.set()

    def close(self) -> None:
        """Closes connections."""
        self.stop()
        self._closed = True
        self._tell()
        self._client.close()

    def _try_once(self, texts: Sequence[str], tokens: int, deadline: float) -> Answer:
        self._enter(deadline, tokens)
        timeout = min(self._timeout_seconds, max(deadline - self._clock(), 0.001))
        started = self._clock()
        try:
            answer = self._client.embed(texts, timeout_seconds=timeout)
        except CallFailedError as failure:
            self._note_failure(failure)
            raise
        finally:
            metrics.REMOTE_SECONDS.observe(self._clock() - started)
        self._note_success()
        metrics.REMOTE_REQUESTS.labels("ok").inc()
        if answer.tokens is not None:
            most = tokens * BYTES_PER_ID + _SPECIAL_TOKENS * len(texts)  # a token is a byte or more
            self._limit.correct(reserved=tokens, used=min(answer.tokens, most))
        return answer

    def _enter(self, deadline: float, tokens: int) -> None:
        """Waits for the provider's limits, as long as there is hope to be served in time."""
        try:
            self._circuit.enter()
            wait = self._limit.reserve(
                tokens, longest_wait_seconds=max(0.0, deadline - self._clock())
            )
        except CircuitOpenError as error:
            metrics.REMOTE_REQUESTS.labels("not_sent").inc()
            raise RemoteModelUnavailableError(
                "The provider of the model does not answer.",
                retry_after_seconds=max(error.retry_after_seconds, _LEAST_RETRY_SECONDS),
            ) from None
        except WaitTooLongError as error:
            raise _told_to_wait(error.seconds) from None
        while wait > 0 and not self._closing.wait(wait):
            metrics.REMOTE_WAIT_SECONDS.inc(wait)
            wait = self._limit.held_seconds  # another thread may have been told to slow down
            if wait > max(0.0, deadline - self._clock()):
                self._limit.correct(reserved=tokens, used=0)
                raise _told_to_wait(wait)
        if self._closing.is_set():
            raise EngineDownError

    def _note_failure(self, failure: CallFailedError) -> None:
        metrics.REMOTE_REQUESTS.labels(failure.kind).inc()
        match failure.kind:
            case FailureKind.REFUSED:
                self._note_success()  # it answered, and at once
            case FailureKind.THROTTLED:
                asked = failure.retry_after_seconds
                self._limit.hold(_LEAST_RETRY_SECONDS if asked is None else asked)
            case kind if not kind.may_be_the_texts:
                self._limit.hold(failure.retry_after_seconds or 0.0)
                self._note_provider_failure(1)

    def _note_success(self) -> None:
        if self._circuit.is_open:
            get_logger().info("remote_circuit_closed")
        self._circuit.succeeded()
        self._tell()

    def _note_provider_failure(self, count: int) -> None:
        was_open = self._circuit.is_open
        self._circuit.failed(count)
        self._tell()
        if self._circuit.is_open and not was_open:
            get_logger().warning("remote_circuit_opened", failures=FAILURES_TO_OPEN)

    def _tell(self) -> None:
        """Counts the provider among those that are left alone, or not; a closed one is not."""
        with self._telling:  # what is looked at last is told last
            self._told.set(self._circuit.is_open and not self._closed)

    def _may_retry(self, failure: CallFailedError, tries: int, deadline: float) -> bool:
        """Tells whether to try again, after having waited for it."""
        if not failure.kind.passes or tries >= MOST_TRIES or self._circuit.is_open:
            return False
        wait = max(backoff_seconds(tries), failure.retry_after_seconds or 0.0)
        if self._clock() + wait >= deadline or not self._retries.spend():
            return False
        return not self._closing.wait(wait)

    def _explained(self, failure: CallFailedError, tries: int) -> Exception:
        """Returns what callers are told."""
        if failure.kind is FailureKind.REFUSED:
            return TextsAtFaultError(str(failure.kind))
        if failure.kind.may_be_the_texts:
            if not self._closing.is_set() and self._is_well():
                return TextsAtFaultError(str(failure.kind))
            self._note_provider_failure(tries + 1)
        get_logger().warning("remote_model_failed", kind=str(failure.kind), tries=tries)
        wait = failure.retry_after_seconds or _LEAST_RETRY_SECONDS
        if failure.kind is FailureKind.DENIED:
            wait = _DENIED_RETRY_SECONDS
        return RemoteModelUnavailableError(
            f"The provider of the model cannot be used ({failure.kind}).",
            retry_after_seconds=max(wait, self._limit.held_seconds),
        )

    def _is_well(self) -> bool:
        """Asks for the vector of a harmless text, once."""
        try:
            self._limit.reserve(_HARMLESS_TOKENS, longest_wait_seconds=0.0)
            timeout = min(self._timeout_seconds, _HARMLESS_SECONDS)
            self._client.embed([_HARMLESS_TEXT], timeout_seconds=timeout)
        except WaitTooLongError:
            return False
        except CallFailedError as failure:
            metrics.REMOTE_REQUESTS.labels(failure.kind).inc()
            return False
        metrics.REMOTE_REQUESTS.labels("ok").inc()
        self._note_success()
        return True


def _told_to_wait(seconds: float) -> RemoteModelUnavailableError:
    metrics.REMOTE_REQUESTS.labels("not_sent").inc()
    return RemoteModelUnavailableError(
        "The provider's limit of requests or tokens is used up.", retry_after_seconds=seconds
    )
