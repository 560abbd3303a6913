"""A journal in memory keeps to the limits of one on the disk."""

from __future__ import annotations

import pytest

from services.io.app import make_journal
from services.io.changes import WrittenFile
from services.io.content import file_digest
from services.io.journal_room import DAY_SECONDS, LEAST_KEPT_SECONDS, JournalLimits
from services.io.memory_journal import MemoryJournal
from services.io.model import Signature
from services.io.settings import IoSettings
from services.runtime.errors import OverloadedError

FINGERPRINT = file_digest(b"request")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def begin(journal: MemoryJournal, request_id: str) -> bool:
    """Begins and ends a request; returns whether it was known."""
    entry = journal.begin(request_id, FINGERPRINT)
    assert entry is not None
    is_known = bool(entry.record.outcomes)
    if not is_known:
        entry.finish([WrittenFile(bytes(32), Signature(1, 2, 3, 4), 0)])
    entry.close()
    return is_known


def test_requests_are_remembered_for_a_day() -> None:
    """Red when a day has another length; it is what docs/files.md promises."""
    assert JournalLimits().kept_seconds == 86_400


def test_a_full_journal_forgets_the_oldest_and_refuses_when_all_are_new() -> None:
    """Red when the oldest go at any age: a caller that repeats within seconds writes twice."""
    clock = Clock()
    journal = MemoryJournal(JournalLimits(entries=2), clock)
    for name in ("a", "b"):
        assert not begin(journal, name)
        clock.now += 1
    with pytest.raises(OverloadedError) as raised:
        begin(journal, "c")
    assert raised.value.retry_after_seconds is not None
    assert begin(journal, "a")

    clock.now += LEAST_KEPT_SECONDS - 1.5
    assert not begin(journal, "c")
    assert begin(journal, "b")
    with pytest.raises(OverloadedError):
        begin(journal, "a")


def test_what_is_too_old_makes_room() -> None:
    clock = Clock()
    journal = MemoryJournal(JournalLimits(entries=1), clock)
    begin(journal, "a")
    clock.now += DAY_SECONDS + 1
    assert not begin(journal, "b")


def test_a_request_under_way_is_not_forgotten_for_another() -> None:
    """Red when age alone is asked: its duplicate would be let in beside it."""
    clock = Clock()
    journal = MemoryJournal(JournalLimits(entries=1), clock)
    entry = journal.begin("a", FINGERPRINT)
    assert entry is not None
    clock.now += LEAST_KEPT_SECONDS + 1
    with pytest.raises(OverloadedError):
        begin(journal, "b")
    entry.close()
    assert not begin(journal, "b")


def test_the_request_that_was_answered_first_is_forgotten_first() -> None:
    """Red when they go in the order in which they began."""
    clock = Clock()
    journal = MemoryJournal(JournalLimits(entries=2), clock)
    slow = journal.begin("slow", FINGERPRINT)
    assert slow is not None
    clock.now += 1
    assert not begin(journal, "quick")
    clock.now += 1
    slow.finish([WrittenFile(bytes(32), Signature(1, 2, 3, 4), 0)])
    slow.close()
    clock.now += LEAST_KEPT_SECONDS
    assert not begin(journal, "new")
    assert begin(journal, "slow")


def test_a_request_under_way_outlasts_the_day() -> None:
    """Red when it is forgotten for its age: its duplicate would be let in beside it."""
    clock = Clock()
    journal = MemoryJournal(clock=clock)
    entry = journal.begin("a", FINGERPRINT)
    assert entry is not None
    clock.now += DAY_SECONDS + 1
    assert journal.expire(0) == 1
    assert journal.begin("a", FINGERPRINT) is None
    entry.close()


def test_the_setting_holds_without_a_state_folder() -> None:
    """Red when the journal in memory has a limit of its own."""
    journal = make_journal(IoSettings(journal_entries=12_000))
    assert isinstance(journal, MemoryJournal)
    for number in range(12_000):
        assert not begin(journal, str(number))
    assert begin(journal, "0")
    with pytest.raises(OverloadedError):
        begin(journal, "one more")
