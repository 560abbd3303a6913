"""A backend whose model runs in a process of its own: watched, killed when it hangs, rebuilt."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from services.embed import metrics, vectors
from services.embed.backends.protocol import (
    BackendInfo,
    EngineDownError,
    EngineError,
    EngineLostError,
    OutOfMemoryError,
)
from services.embed.canary import CANARY_TEXTS, agreement
from services.embed.hosting.life import Call, Life, LoadRequest
from services.embed.hosting.patience import Patience
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
        load_seconds: float,
        tell: Callable[[bool], None],
    ) -> None:
        self._request = request
        self._hang_seconds = hang_seconds
        self._rebuild_seconds = rebuild_seconds
        self._load_seconds = load_seconds
        self._tell = tell
        self._changed = threading.Condition()
        self._life: Life | None = None
        self._serving = False
        self._away_since: float | None = None
        self._closing = threading.Event()
        self._refused: StartError | None = None
        self._facts: tuple[BackendInfo, TextEncoder] | None = None
        self._canary: Vectors | None = None
        self._patience = Patience(hang_seconds)
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

    def wait_until_up(self) -> None:
        """Waits for an engine that is being rebuilt, until it has been away for too long.

        Raises:
            EngineDownError: it is not back in time, or is being closed.
        """
        with self._changed:
            now = time.monotonic()
            away_seconds = 0.0 if self._away_since is None else now - self._away_since
            self._changed.wait_for(
                lambda: self._is_up() or self._closing.is_set(),
                max(0.0, self._rebuild_seconds - away_seconds),
            )
            if not self._is_up() or self._closing.is_set():
                raise EngineDownError

    def infer(self, batch: Sequence[TokenIds], route: str = "") -> Vectors:
        """Returns one row per text; ends in bounded time, whatever the engine does.

        Raises:
            EngineDownError: the engine is away.
            EngineLostError: it died or hung while it had the batch, or fails on everything.
            OutOfMemoryError, EngineError: it said so.
        """
        with self._changed:
            life = self._life if self._is_up() else None
        call = life.submit(batch, route) if life is not None else None
        if life is None or call is None:
            raise EngineDownError
        try:
            rows = self._answer(life, call, batch)
        except (OutOfMemoryError, EngineError):
            if len(batch) == 1 and self._ends_broken(life, route):
                raise EngineLostError(hung=False) from None
            raise
        if not any(self._good(rows)) and self._ends_broken(life, route):
            raise EngineLostError(hung=False)
        return rows

    def stop(self) -> None:
        """Ends the engine, and with it whatever waits for it."""
        self._closing.set()
        with self._changed:
            life = self._life
            self._changed.notify_all()
            serving = self._serving
        if life is not None:
            life.hang_up() if serving else life.kill()

    def close(self) -> None:
        """Ends the engine; blocks until it is gone."""
        self.stop()
        self._thread.join()

    def _is_up(self) -> bool:
        return self._serving and self._life is not None and not self._life.gone

    def _run(self, life: Life, ids: TokenIds, route: str) -> Vectors:
        call = life.submit([ids], route)
        if call is None:
            raise EngineLostError(hung=False)
        return self._answer(life, call, [ids])

    def _answer(self, life: Life, call: Call, batch: Sequence[TokenIds]) -> Vectors:
        tokens = sum(map(len, batch))
        started = time.monotonic()
        if not call.wait(self._patience.seconds(tokens)):
            life.kill("hung")
            raise EngineLostError(hung=True)
        rows = call.rows()
        self._patience.note_answer(tokens, time.monotonic() - started)
        return rows

    def _good(self, rows: Vectors) -> Sequence[bool]:
        info = self.info
        return vectors.good_rows(rows, dimensions=info.dimensions, scores=info.scores)

    def _ends_broken(self, life: Life, route: str) -> bool:
        """Ends an engine that fails on a canary text as well; returns whether it is lost.

        A new one starts clean. The text that met the fault need not be the one that made it.
        """
        texts = self._canary_texts()
        at = next(at for at, (_, its_route) in enumerate(texts) if its_route == route)
        try:
            row = self._run(life, *texts[at])
        except OutOfMemoryError:
            life.kill("out_of_memory")
        except EngineError:
            life.kill("raised")
        except EngineLostError:
            pass  # it is being rebuilt already
        else:
            if any(self._good(row)):
                return False
            life.kill("wrong_vectors")
        return True

    def _supervise(self) -> None:
        pause_seconds = _FIRST_PAUSE_SECONDS
        while not self._closing.is_set():
            try:
                life = self._start()
            except StartError as error:
                if self._canary is None:
                    self._refuse(error)
                    return
                get_logger().error(
                    "engine_rebuild_failed", why=error.message, retry_seconds=pause_seconds
                )
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
        """Returns a process that agrees with the first one. Raises StartError, and nothing else."""
        try:
            life = Life(self._request, hang_seconds=self._hang_seconds)
        except OSError as error:
            raise StartError(
                ExitCode.MODEL, f"The process that runs the model does not start: {error.strerror}."
            ) from None
        with self._changed:
            self._life = life
            if self._closing.is_set():
                life.kill()
        try:
            self._check(life, life.load(load_seconds=self._load_seconds))
        except BaseException as error:
            life.kill()
            life.reap()
            if isinstance(error, StartError) or not isinstance(error, Exception):
                raise
            raise StartError(
                ExitCode.MODEL, f"The engine does not start ({type(error).__name__})."
            ) from None
        return life

    def _check(self, life: Life, facts: tuple[BackendInfo, TextEncoder]) -> None:
        if self._facts is not None and facts[0] != self.info:
            raise StartError(ExitCode.MODEL, "The model changed on the disk under the service.")
        self._facts = facts
        try:
            rows = [self._run(life, ids, route) for ids, route in self._canary_texts()]
        except Exception as error:  # noqa: BLE001 - whatever it is, this engine does not serve
            raise StartError(
                ExitCode.MODEL, f"The engine fails on its own texts ({type(error).__name__})."
            ) from None
        found = np.concatenate(rows)
        if self._canary is None:
            if not all(self._good(found)):
                what = "scores" if self.info.scores else "vectors"
                raise StartError(ExitCode.MODEL, f"The model gives no {what} that may be stored.")
            self._canary = found
        elif agreement(found, self._canary, scores=self.info.scores) < _SAME_COSINE:
            metrics.ENGINE_LOSSES.labels("wrong_vectors").inc()
            raise StartError(ExitCode.MODEL, "The rebuilt engine gives other vectors.")

    def _canary_texts(self) -> list[tuple[TokenIds, str]]:
        """Returns the canary texts as each route reads them, with the route."""
        assert self._facts is not None
        info, encoder = self._facts
        return [
            (item.ids, route)
            for route in info.all_routes
            for item in encoder.encode(CANARY_TEXTS, Truncation.END, route)
            if isinstance(item, EncodedText)
        ]

    def _let_in(self, *, serving: bool) -> None:
        with self._changed:
            self._serving = serving
            self._away_since = None if serving else time.monotonic()
            self._changed.notify_all()
        metrics.ENGINES_UP.inc(1 if serving else -1)
        if serving or not self._closing.is_set():
            self._tell(serving)

    def _refuse(self, error: StartError) -> None:
        with self._changed:
            self._refused = error
            self._changed.notify_all()
