"""A watch that cannot know everything is never silent about it, and says why."""

from __future__ import annotations

import errno
import os
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.io.model import Root, SymlinkPolicy
from services.io.origins import Origins
from services.io.roots import Roots
from services.io.watch import listing, walk
from services.io.watch.inotify import Inotify
from services.io.watch.log import EventLog
from services.io.watch.model import EventType, FileEvent, RescanCause, WatchOptions
from services.io.watch.stream import tell
from services.io.watch.watchers import Watchers
from tests.unit.io.test_io_watch_faults import rescans
from tests.unit.io.test_io_watch_limits import SOON, Limit, hears_all
from tests.unit.io.watching import RULES, Client, wait_for, watch

if TYPE_CHECKING:
    from tests.unit.io.harness import MakeFiles


def test_a_watch_whose_events_cannot_be_read_any_more_ends(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when the thread that reads them ends alone: the watch would live and tell nothing."""

    def fail(_: Inotify) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    top = make_files({"a.py": "a"})
    with watch(top) as watched:
        monkeypatch.setattr(Inotify, "read", fail)
        (top / "b.py").touch()
        wait_for(lambda: watched.watcher.has_ended, 5)
        assert isinstance(watched.watcher.error, OSError)


@pytest.mark.parametrize(
    ("owner", "name", "wanted"), [(os, "open", "new"), (listing, "list_folder", None)]
)
def test_a_folder_that_cannot_be_opened_or_listed_now_is_told_by_a_rescan(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wanted: str
) -> None:
    """The folder is empty, and nothing else changes.

    Red when a failed open or list does not count as a limit.
    """
    top = make_files({"a.py": "a"})
    with watch(top, options=SOON) as watched:
        client = Client(watched)
        limit = Limit(monkeypatch, owner, name, wanted)
        (top / "new").mkdir()
        assert limit.was_met.wait(5)
        wait_for(lambda: client.take() is not None and client.rescans, 5)
        (top / "new/n.py").write_text("n")
        hears_all(watched, client)


def test_more_links_than_are_followed_are_told_by_rescans(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when links beyond the limit are left out without a word."""
    monkeypatch.setattr(walk, "MAX_FOLLOWED", 1)
    top = make_files({"t/a.py": "a", "out/o.py": "o", "out/p.py": "p"})
    for name in ("o.py", "p.py"):
        (top / "t" / name).symlink_to(f"../out/{name}")
    options = replace(SOON, check_seconds=60)
    with watch(top, SymlinkPolicy.WITHIN_ROOT, "t", options) as watched:
        client = Client(watched)
        for name in ("o.py", "p.py"):
            (top / "out" / name).write_text("more")
        wait_for(lambda: client.take() is not None and client.rescans > 1, 5)
        assert client.known == watched.scan()


async def test_a_rescan_of_one_caller_is_counted_by_its_cause(make_files: MakeFiles) -> None:
    """Red when a foreign token, or falling behind, is told and not counted."""
    roots = Roots([Root("test", str(make_files({"a.py": "a"})), SymlinkPolicy.DENY)])
    watchers = Watchers(roots.open_tree, RULES, Origins(), WatchOptions(log_events=100))
    before = {cause: rescans(cause) for cause in RescanCause}
    told: list[EventType] = []
    async with watchers.subscribe("roots/test", "") as subscription:
        foreign = EventLog(100, 60).token(0)
        async with aclosing(tell(subscription, foreign, "", 3600)) as messages:
            told += [event.type for event in (await anext(messages)).events]
            for _ in range(3):
                subscription.log.append([FileEvent(EventType.CREATED, "n.py")] * 80)
            told += [event.type for event in (await anext(messages)).events]
    await watchers.close()

    assert told == [EventType.RESCAN] * 2
    counted = {cause: rescans(cause) - before[cause] for cause in RescanCause}
    assert counted == dict.fromkeys(RescanCause, 0) | {
        RescanCause.TOKEN: 1, RescanCause.SLOW_SUBSCRIBER: 1,
    }  # fmt: skip
