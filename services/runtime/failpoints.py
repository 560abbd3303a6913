"""Named places in the code where a test makes a process fail; in production there are none.

A test arms them by `LODESTONE_FAILPOINTS`, a list of `name=action` with commas between:

    indexer.commit.before=kill@3        the third time, SIGKILL
    indexer.claim.after=sleep:2@1+      each time from the first on, two seconds
    embed.forward.before=error:unavailable%0.1,seed=7

Actions: `kill` (SIGKILL of this process), `stop` (SIGSTOP), `exit[:code]`, `sleep:seconds`,
`error` (an error that nobody expects) and `error:unavailable` (one that passes). When: `@n` the
n-th time alone (the default is `@1`), `@n+` from the n-th time on, `%p` each time with probability
p, drawn from the seed.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import random
import re
import signal
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

from services.runtime.errors import DependencyUnavailableError, LodestoneError
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "LODESTONE_FAILPOINTS"
PERMISSION = "LODESTONE_ALLOW_FAILPOINTS"

POINTS = tuple(
    f"{place}.{when}"
    for place in (
        "indexer.migrate",
        "indexer.take",
        "indexer.plan",
        "indexer.claim",
        "indexer.fetch",
        "indexer.forward",
        "indexer.commit",
        "indexer.finish",
        "io.scan",
        "io.parse",
        "io.read",
        "embed.forward",
    )
    for when in ("before", "after")
)
"""Every failpoint there is; a test holds the code to this list."""

_LONGEST_SLEEP_SECONDS = 600.0
_ITEM = re.compile(
    r"(?P<action>[a-z]+)(:(?P<argument>[a-z0-9.]+))?"
    r"(@(?P<first>[1-9]\d{0,8})(?P<on>\+)?|%(?P<probability>0?\.\d+|1))?"
)


class Action(StrEnum):
    """What happens at a failpoint."""

    KILL = "kill"
    STOP = "stop"
    EXIT = "exit"
    SLEEP = "sleep"
    ERROR = "error"


class FailpointError(LodestoneError):
    """A failpoint was told to fail."""


@dataclass
class Fault:
    """What one failpoint does, and when."""

    action: Action
    argument: str = ""
    first: int = 1
    goes_on: bool = False
    probability: float | None = None
    random: random.Random = field(default_factory=random.Random)
    hits: int = 0

    def due(self) -> bool:
        """Counts a visit; returns whether this one is to fail."""
        self.hits += 1
        if self.probability is not None:
            return self.random.random() < self.probability
        return self.hits == self.first or (self.goes_on and self.hits > self.first)


# The one piece of state at module level: a failpoint is reached from everywhere, and must cost
# nothing but a look into an empty dictionary where none is armed.
_armed: dict[str, Fault] = {}


async def failpoint(name: str) -> None:
    """Fails here if the point is armed."""
    if (fault := _armed.get(name)) is not None and fault.due():
        if fault.action is Action.SLEEP:
            await asyncio.sleep(float(fault.argument))
        else:
            _fail(name, fault)


def failpoint_in_thread(name: str) -> None:
    """Fails here if the point is armed; for code outside the event loop, which it blocks."""
    if (fault := _armed.get(name)) is not None and fault.due():
        _fail(name, fault)


def arm(environment: Mapping[str, str]) -> None:
    """Arms the failpoints that the environment names, and no others.

    Raises:
        StartError: a point or action is unknown, or failpoints are not allowed here.
    """
    _armed.clear()
    text = environment.get(VARIABLE, "")
    if not text:
        return
    if environment.get(PERMISSION) != "1":
        raise StartError(
            ExitCode.USAGE,
            f"{VARIABLE} makes this process fail on purpose, which is for tests alone. "
            f"Unset it, or set {PERMISSION}=1 too.",
        )
    _armed.update(parse(text))


def parse(text: str) -> dict[str, Fault]:
    """Returns the faults by point. Raises StartError for a text that breaks the rules above."""
    items = dict(item.strip().partition("=")[::2] for item in text.split(",") if item.strip())
    seed = items.pop("seed", "0")
    for name in items:
        if name not in POINTS:
            close = difflib.get_close_matches(name, POINTS, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise StartError(ExitCode.USAGE, f"{VARIABLE}: unknown failpoint {name}.{hint}")
    return {name: _fault(name, action, seed) for name, action in items.items()}


def _fault(name: str, text: str, seed: str) -> Fault:
    match = _ITEM.fullmatch(text)
    if match is None or match["action"] not in set(Action):
        actions = ", ".join(Action)
        raise StartError(
            ExitCode.USAGE,
            f"{VARIABLE}: {name}={text} is no fault. Write e.g. kill@3; actions: {actions}.",
        )
    action, argument = Action(match["action"]), match["argument"] or ""
    _check_argument(name, action, argument)
    return Fault(
        action,
        argument,
        first=int(match["first"] or 1),
        goes_on=match["on"] is not None,
        probability=float(match["probability"]) if match["probability"] else None,
        random=random.Random(f"{seed}/{name}"),  # noqa: S311 - repeatable, not secret
    )


def _check_argument(name: str, action: Action, argument: str) -> None:
    wanted = ""
    match action:
        case Action.SLEEP:
            seconds = float(argument) if re.fullmatch(r"\d+(\.\d+)?", argument) else -1.0
            if not 0 <= seconds <= _LONGEST_SLEEP_SECONDS:
                wanted = f"seconds up to {_LONGEST_SLEEP_SECONDS:.0f}"
        case Action.EXIT:
            if argument and not (argument.isdigit() and int(argument) <= 255):
                wanted = "a code up to 255"
        case Action.ERROR:
            if argument not in {"", "unavailable"}:
                wanted = "unavailable or nothing"
        case Action.KILL | Action.STOP:
            if argument:
                wanted = "nothing"
        case _:
            assert_never(action)
    if wanted:
        raise StartError(
            ExitCode.USAGE, f"{VARIABLE}: {name}={action} takes {wanted}, not {argument!r}."
        )


def _fail(name: str, fault: Fault) -> None:
    match fault.action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.EXIT:
            os._exit(int(fault.argument or ExitCode.FAILED))
        case Action.SLEEP:
            time.sleep(float(fault.argument))
        case Action.ERROR if fault.argument:
            raise DependencyUnavailableError(
                "A failpoint is told to fail.", metadata={"dependency": name.partition(".")[0]}
            )
        case Action.ERROR:
            raise FailpointError("A failpoint is told to fail.")
        case _:
            assert_never(fault.action)
