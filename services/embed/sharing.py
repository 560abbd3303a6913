"""Divides the machine between models: forwards take turns by weight, and none waits when alone."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.embed import metrics
from services.embed.backends.protocol import EngineDownError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from services.embed.backends.protocol import Backend, BackendInfo
    from services.embed.model import TokenIds, Vectors

_ROUNDING = 1e-9
_RETURN_SECONDS = 0.005
"""How long a turn is kept for a model that just ended one: its thread comes back with the next
batch after it has laid out the last one. Without this two busy models with a thread each would
alternate, whatever their weights. Costs nothing where no other model waits."""
_LONGEST_TURN_SECONDS = 5.0
"""How long a forward has its part of the device for itself; then others run beside it. Most end
within it: one that hangs is found out much later, and again for each half of its batch."""


class Seat:
    """One model's claim to a device. Its fields belong to the lock of its `Turns`."""

    def __init__(self, weight: float, part: float) -> None:
        self.weight = weight
        self.part = part
        """The part of the device that one forward takes: a half with two streams."""
        self.used = 0.0
        """Device seconds by weight: whoever has the least is next (start-time fair queueing)."""
        self.waiting = 0
        self.running = 0
        self.back_until = 0.0
        self.stopped = False

    @property
    def wants(self) -> bool:
        """Whether it waits for a turn, or will in a moment."""
        return self.waiting > 0 or self.back_until > time.monotonic()


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A part of the device that a forward holds, and until when it does alone."""

    seat: Seat
    until: float


class Turns:
    """Lets forwards onto one device, at most as many at once as fill it. Used by engine threads.

    Whenever there is room, the model that has used the least of its share goes next, also when its
    forward does not fit yet: a large one would otherwise never find all of the device free. A model
    that had nothing to do saves nothing up: it starts level with the others. Whoever does not end
    keeps nobody waiting for long.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._seats: list[Seat] = []
        self._held: list[_Turn] = []
        self._virtual_time = 0.0
        """What the model had used whose turn came last: where one that was idle starts again."""

    def join(self, *, weight: float, concurrency: int) -> Seat:
        """Returns a seat for a model that runs so many forwards at once when it is alone."""
        seat = Seat(weight, 1.0 / concurrency)
        with self._changed:
            self._seats.append(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        """Gives up a seat; nothing runs or waits on it."""
        with self._changed:
            self._seats.remove(seat)
            self._changed.notify_all()

    def stop(self, seat: Seat) -> None:
        """Lets go whoever waits on a seat, now and later."""
        with self._changed:
            seat.stopped = True
            self._changed.notify_all()

    @contextmanager
    def turn(self, seat: Seat) -> Iterator[None]:
        """Waits for a turn, and holds a part of the device within.

        Raises:
            EngineDownError: the seat was stopped.
        """
        turn = self._take(seat)
        started = self._clock()
        try:
            yield
        finally:
            self._give_back(turn, self._clock() - started)

    def _take(self, seat: Seat) -> _Turn:
        with self._changed:
            if not seat.waiting and not seat.running:
                seat.used = max(seat.used, self._virtual_time)
            seat.waiting += 1
            if not self._is_next(seat):
                with metrics.TURN_WAIT_SECONDS.time():
                    while not self._is_next(seat) and not seat.stopped:
                        self._changed.wait(self._seconds_to_look_again())
            seat.waiting -= 1
            if seat.stopped:
                self._changed.notify_all()  # another may be next now
                raise EngineDownError
            seat.running += 1
            self._virtual_time = max(self._virtual_time, seat.used)
            turn = _Turn(seat, time.monotonic() + _LONGEST_TURN_SECONDS)
            self._held.append(turn)
            self._changed.notify_all()  # there may be room for one more
            return turn

    def _give_back(self, turn: _Turn, seconds: float) -> None:
        seat = turn.seat
        with self._changed:
            seat.running -= 1
            seat.back_until = time.monotonic() + _RETURN_SECONDS
            seat.used += min(seconds, _LONGEST_TURN_SECONDS) * seat.part / seat.weight
            self._held.remove(turn)
            self._changed.notify_all()

    def _free(self) -> float:
        now = time.monotonic()
        return 1.0 - sum(turn.seat.part for turn in self._held if turn.until > now)

    def _seconds_to_look_again(self) -> float:
        """Returns when the answer may be another one though nobody tells."""
        now = time.monotonic()
        ends = [turn.until - now for turn in self._held if turn.until > now]
        return _RETURN_SECONDS if self._free() > _ROUNDING else min(ends, default=_RETURN_SECONDS)

    def _is_next(self, seat: Seat) -> bool:
        if seat.part > self._free() + _ROUNDING:
            return False
        return all(seat.used <= other.used for other in self._seats if other.wants)


class SharedBackend:
    """A backend whose forwards wait for their turn."""

    def __init__(self, backend: Backend, turns: Turns, *, weight: float) -> None:
        self._backend = backend
        self._turns = turns
        self._seat = turns.join(weight=weight, concurrency=backend.info.concurrency)

    @property
    def info(self) -> BackendInfo:
        """What the backend is."""
        return self._backend.info

    def wait_until_up(self) -> None:
        """Waits for the engine before the turn: others go on while it is rebuilt."""
        self._backend.wait_until_up()

    def infer(self, batch: Sequence[TokenIds], route: str = "") -> Vectors:
        """Runs a batch when it is its turn."""
        with self._turns.turn(self._seat):
            return self._backend.infer(batch, route)

    def stop(self) -> None:
        """Ends waits, for the turn as well."""
        self._turns.stop(self._seat)
        self._backend.stop()

    def close(self) -> None:
        """Releases the model and its claim."""
        self._turns.leave(self._seat)
        self._backend.close()


class Devices:
    """The turns of each device of this machine, made when a model first wants it."""

    def __init__(self) -> None:
        self._turns: dict[str, Turns] = {}

    def shared(self, backend: Backend, *, weight: float) -> Backend:
        """Returns a backend that takes turns; one that uses no device of ours takes none."""
        device = backend.info.device
        if not device:
            return backend
        return SharedBackend(backend, self._turns.setdefault(device, Turns()), weight=weight)
