"""A backend whose model runs in a process of its own: watched, killed when it hangs, rebuilt."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from services.embed import metrics
from services.embed.backends.protocol import (
    BackendInfo,
    EngineDownError,
    EngineLostError,
    OutOfMemoryError,
)
from services.embed.canary import CANARY_TEXTS, least_cosine
from services.embed.hosting.life import Call, Life, LoadRequest
from services.embed.model import EncodedText, Truncation
from services.runtime.exits import ExitCode, StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.embed.backends.protocol import TextEncoder
    from services.embed.model import TokenIds, Vectors

_SAME_COSINE = 0.9999
"""A rebuilt engine gives the vectors of the first one, beyond rounding."""
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_SLOWER_THAN_EVER = 20.0
"""A forward that takes this many times what its tokens took so far may be taken as hung."""
_RATE_WEIGHT = 0.1


class EngineProcess:
    """Implements `Backend` by a child process; a death costs the batches in it, nobody hangs.

    One thread supervises: it starts the process, lets calls in once the canary texts get the
    vectors they got at first, and starts the next when that one ends. `tell` is called by it with
    whether calls are let in.
    """

    def __init__(
        self,
        request: LoadRequest,
        *,
        hang_seconds: float,
        rebuild_seconds: float,
        tell: Callable[[bool], None],
    ) -> None:
        self._request = request
        self._hang_seconds = hang_seconds
        self._rebuild_seconds = rebuild_seconds
        self._tell = tell
        self._changed = threading.Condition()
        self._life: Life | None = None
        self._serving = False
        self._closing = threading.Event()
        self._refused: StartError | None = None
        self._facts: tuple[BackendInfo, TextEncoder] | None = None
        self._canary: Vectors | None = None
        self._seconds_per_token = 0.0
        self._thread = threading.Thread(target=self._supervise, name="engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> BackendInfo:
        """What the loaded backend is."""
        assert self._facts is not None, "it is loaded before it is asked"
        return self._facts[0]

    @property
    def pid(self) -> int:
        """Process id of the engine, 0 when there is none."""
        life = self._life
        return life.pid if life is not None else 0

    def wait_until_loaded(self) -> TextEncoder:
        """Blocks until the model serves; returns its encoder.

        Raises:
            StartError: it does not load, or `close` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._serving or self._refused is not None)
            if self._refused is not None:
                raise self._refused
        assert self._facts is not None
        return self._facts[1]

    def infer(self, batch: Sequence[TokenIds]) -> Vectors:
        """Returns one row per text; ends in bounded time, whatever the engine does.

        Raises:
            EngineDownError: the engine is away and was not back in time.
            EngineLostError: it died or hung while it had the batch.
            OutOfMemoryError, EngineError: it said so.
        """
        life = self._serving_life()
        while (call := life.submit(batch)) is None:
            life = self._serving_life()
        try:
            return self._answer(life, call, batch)
        except OutOfMemoryError:
            if len(batch) == 1:
                self._restart_if_broken(life)
            raise

    def close(self) -> None:
        """Ends the engine; blocks until it is gone."""
        self._closing.set()
        with self._changed:
            life = self._life
            self._changed.notify_all()
            serving = self._serving
        if life is not None:
            life.hang_up() if serving else life.kill()
        self._thread.join()

    def _serving_life(self) -> Life:
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_up() or self._closing.is_set(), self._rebuild_seconds
            )
            if not self._is_up() or self._life is None:
                raise EngineDownError
            return self._life

    def _is_up(self) -> bool:
        return self._serving and self._life is not None and not self._life.gone

    def _run(self, life: Life, batch: Sequence[TokenIds]) -> Vectors:
        call = life.submit(batch)
        if call is None:
            raise EngineLostError(hung=False)
        return self._answer(life, call, batch)

    def _answer(self, life: Life, call: Call, batch: Sequence[TokenIds]) -> Vectors:
        tokens = sum(map(len, batch))
        started = time.monotonic()
        if not call.wait(self._patience_seconds(tokens)):
            life.kill("hung")
            raise EngineLostError(hung=True)
        rows = call.rows()
        seconds_per_token = (time.monotonic() - started) / max(tokens, 1)
        self._seconds_per_token += _RATE_WEIGHT * (seconds_per_token - self._seconds_per_token)
        return rows

    def _patience_seconds(self, tokens: int) -> float:
        return max(self._hang_seconds, _SLOWER_THAN_EVER * self._seconds_per_token * tokens)

    def _restart_if_broken(self, life: Life) -> None:
        """Ends an engine that has no memory even for the canary texts: a new one starts clean."""
        try:
            self._run(life, self._canary_ids()[:1])
        except OutOfMemoryError:
            life.kill("out_of_memory")
        except EngineLostError:
            return  # it is being rebuilt already

    def _supervise(self) -> None:
        pause_seconds = _FIRST_PAUSE_SECONDS
        while not self._closing.is_set():
            try:
                life = self._start()
            except StartError as error:
                if self._canary is None:
                    self._refuse(error)
                    return
                get_logger().error("engine_rebuild_failed", retry_seconds=pause_seconds)
                self._closing.wait(pause_seconds)
                pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
                continue
            pause_seconds = _FIRST_PAUSE_SECONDS
            self._let_in(serving=True)
            life.ended.wait()
            self._let_in(serving=False)
            life.reap()
            if not self._closing.is_set():
                metrics.ENGINE_LOSSES.labels(life.cause).inc()
                get_logger().error("engine_lost", cause=life.cause)
        self._tell(True)

    def _start(self) -> Life:
        """Returns a process that agrees with the first one. Raises StartError."""
        life = Life(self._request)
        with self._changed:
            self._life = life
            if self._closing.is_set():
                life.kill()
        try:
            facts = life.load()
            self._check(life, facts)
        except BaseException:
            life.kill()
            life.reap()
            raise
        return life

    def _check(self, life: Life, facts: tuple[BackendInfo, TextEncoder]) -> None:
        first = self._facts is None
        if first:
            self._facts = facts
        elif facts[0] != self.info:
            raise StartError(ExitCode.MODEL, "The model changed on the disk under the service.")
        try:
            rows = [self._run(life, [ids]) for ids in self._canary_ids()]
        except Exception as error:  # noqa: BLE001 - whatever it is, this engine does not serve
            raise StartError(
                ExitCode.MODEL, f"The engine fails on its own texts ({type(error).__name__})."
            ) from None
        vectors = np.concatenate(rows)
        if self._canary is None:
            self._canary = vectors
        elif least_cosine(vectors, self._canary) < _SAME_COSINE:
            metrics.ENGINE_LOSSES.labels("wrong_vectors").inc()
            raise StartError(ExitCode.MODEL, "The rebuilt engine gives other vectors.")

    def _canary_ids(self) -> list[TokenIds]:
        assert self._facts is not None
        encoded = self._facts[1].encode(CANARY_TEXTS, Truncation.END)
        return [item.ids for item in encoded if isinstance(item, EncodedText)]

    def _let_in(self, *, serving: bool) -> None:
        with self._changed:
            self._serving = serving
            self._changed.notify_all()
        metrics.ENGINES_UP.inc(1 if serving else -1)
        if serving or not self._closing.is_set():
            self._tell(serving)

    def _refuse(self, error: StartError) -> None:
        with self._changed:
            self._refused = error
            self._changed.notify_all()
