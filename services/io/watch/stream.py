"""What one caller is told of a watched tree, at that caller's own pace."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.io import metrics
from services.io.watch.model import EventType, FileEvent, RescanCause

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from services.io.watch.watchers import Subscription

MAX_EVENTS_PER_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class Told:
    """One message: events, none in a heartbeat, and the token that resumes after them."""

    events: Sequence[FileEvent]
    resume_token: str


async def tell(
    subscription: Subscription, resume_token: str, ignore_origin_id: str, heartbeat_seconds: float
) -> AsyncGenerator[Told, None]:
    """Yields messages without end; the first at once.

    Whoever reads so slowly that events were forgotten meanwhile, or comes with a token from before
    them, gets a RESCAN instead.

    Raises:
        InvalidRequestError: the token is none.
        LodestoneError: the watch has ended.
    """
    log = subscription.log
    position: int | None = log.position(resume_token) if resume_token else log.end
    lost = RescanCause.TOKEN
    told_at = -math.inf  # not 0: a machine may have started less than a heartbeat ago
    while True:
        subscription.raise_if_over()
        events = None if position is None else log.read(position, MAX_EVENTS_PER_MESSAGE)
        if position is None or events is None:
            position = log.end
            events = [FileEvent(EventType.RESCAN, time_ns=time.time_ns())]
            metrics.WATCH_RESCANS.labels(lost.value).inc()
        else:
            position += len(events)
        lost = RescanCause.SLOW_SUBSCRIBER
        is_end = not events
        events = [event for event in events if _is_for(event, ignore_origin_id)]
        left = told_at + heartbeat_seconds - time.monotonic()
        if events or left <= 0:
            yield Told(events, log.token(position))
            told_at = time.monotonic()
        elif is_end:
            await subscription.wait(left)


def _is_for(event: FileEvent, ignored_origin_id: str) -> bool:
    return not ignored_origin_id or event.origin_id != ignored_origin_id
