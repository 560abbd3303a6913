"""A request that writes changes nothing twice, however often it comes and whatever dies."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from services.io.changes import Intent, NewFile, WrittenFile
from services.io.content import file_digest
from services.io.edit_journal import SHARDS, DiskJournal, journal_error
from services.io.edit_records import Record, intent_line, outcome_line, read_record
from services.io.errors import ContentChangedError, DiskFullError, RequestIdReusedError
from services.io.journal_room import DAY_SECONDS, LEAST_KEPT_SECONDS, JournalLimits
from services.io.journal_upkeep import JournalUpkeep
from services.io.memory_journal import MemoryJournal
from services.io.model import Signature
from services.io.writer import WriteRules
from services.runtime.errors import DependencyUnavailableError, OverloadedError
from tests.unit.io.writing import (
    edit,
    eventually,
    failed,
    opened_writer,
    replacing,
    request,
    temporary_files,
    writable_root,
    written,
)

if TYPE_CHECKING:
    from pathlib import Path

    from services.io.changes import Outcome
    from services.io.edit_journal import Journal
    from tests.unit.io.harness import MakeFiles

FINGERPRINT = file_digest(b"request")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def entries(state: Path) -> list[Path]:
    return [path for path in state.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
async def test_a_repeated_request_is_answered_as_the_first_one_was(
    make_files: MakeFiles, tmp_path: Path, kept: str
) -> None:
    """Red without a journal: the second answer is that the content changed."""
    top = make_files({"a": "one", "b": "two"})
    asked = request(replacing("a", b"one", b"two"), replacing("b", b"?", b""))
    state = tmp_path / "state" if kept == "on disk" else None
    async with opened_writer(top, state) as writer:
        first = await writer.write(asked)
        (top / "a").write_text("one")  # as it was before: only the journal tells
        again = await writer.write(asked)
    assert again[0] == first[0]
    assert [type(outcome) for outcome in again] == [WrittenFile, ContentChangedError]
    assert vars(again[1]) == vars(first[1])
    assert (top / "a").read_text() == "one"


async def test_a_request_is_remembered_across_a_restart_and_its_entry_holds_no_content(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"a": "canary-old"})
    asked = request(replacing("a", b"canary-old", b"canary-new"), NewFile("b", b"canary-b"))
    async with opened_writer(top, tmp_path / "state") as writer:
        first = await writer.write(asked)
    async with opened_writer(top, tmp_path / "state") as writer:
        assert await writer.write(asked) == first
    [entry] = entries(tmp_path / "state")
    assert b"canary" not in entry.read_bytes()
    assert entry.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
async def test_the_same_id_with_another_request_is_refused(
    make_files: MakeFiles, tmp_path: Path, kept: str
) -> None:
    top = make_files({"a": "one"})
    request_id = str(uuid.uuid4())
    async with opened_writer(top, tmp_path / "state" if kept == "on disk" else None) as writer:
        await writer.write(request(replacing("a", b"one", b"two"), request_id=request_id))
        other = request(replacing("a", b"two", b"three"), request_id=request_id.upper())
        with pytest.raises(RequestIdReusedError) as raised:
            await writer.write(other)
    assert raised.value.metadata == {"request_id": request_id.upper()}
    assert (top / "a").read_text() == "two"


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
async def test_duplicates_at_once_wait_for_the_first(
    make_files: MakeFiles, tmp_path: Path, kept: str
) -> None:
    """Red when an entry is open to two: one of them finds changed content."""
    top = make_files({"a": "one"})
    asked = request(replacing("a", b"one", b"two"))
    async with opened_writer(top, tmp_path / "state" if kept == "on disk" else None) as writer:
        answers = await asyncio.gather(*(writer.write(asked) for _ in range(20)))
    assert isinstance(answers[0][0], WrittenFile)
    assert all(answer == answers[0] for answer in answers)


async def test_two_writers_that_share_a_state_folder_write_a_request_once(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"a": "one"})
    asked = request(replacing("a", b"one", b"two"))
    async with opened_writer(top, tmp_path / "s") as one, opened_writer(top, tmp_path / "s") as two:
        first, second = await asyncio.gather(one.write(asked), two.write(asked))
    written(first[0])
    assert first == second


async def test_what_may_pass_is_tried_again_under_the_same_id(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when every outcome is final: a caller would be told of a full disk for a day."""
    top = make_files({"a": "one", "b": "one"})
    asked = request(replacing("a", b"one", b"two"), replacing("b", b"one", b"two"))
    rules = WriteRules(100, lock_wait_seconds=0.05)
    async with opened_writer(top, tmp_path / "state", rules=rules) as writer:
        with (top / "a").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            first = await writer.write(asked)
        again = await writer.write(asked)
    failed(first[0], OverloadedError)
    written(again[0])
    assert again[1] == first[1]


async def test_a_caller_that_leaves_stops_what_is_not_begun_and_the_rest_is_finished(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the cancellation reaches the work: files are new and nobody noted their end."""
    names = [f"f{i:03}" for i in range(200)]
    top = make_files(dict.fromkeys(names, "old"))
    asked = request(*(replacing(name, b"old", b"new") for name in names))
    async with opened_writer(top, tmp_path / "state") as writer:
        call = asyncio.create_task(writer.write(asked))
        await eventually(lambda: (top / names[0]).read_text() == "new")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await writer.close()
        entry = DiskJournal(tmp_path / "state/edits").begin(asked.request_id, asked.fingerprint)
        assert entry is not None
        entry.close()
        noted = [o is not None for o in entry.record.outcomes]
        done = [name for name in names if (top / name).read_text() == "new"]
        assert 0 < len(done) < len(names)
        assert [name for name, is_noted in zip(names, noted, strict=True) if is_noted] == done
        again = await writer.write(asked)
    assert all(isinstance(outcome, WrittenFile) for outcome in again)
    assert not temporary_files(top)


def intent(old: bytes, new: bytes) -> Intent:
    return Intent(file_digest(old) if old else b"", file_digest(new), len(new) - len(old))


async def test_a_request_whose_process_died_is_found_done_by_its_files(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when intents are not read: the file that was put in place looks changed by others."""
    top = make_files({"done": "new", "open": "old", "changed": "other", "made": "new"})
    asked = request(
        *(replacing(name, b"old", b"new") for name in ("done", "open", "changed")),
        NewFile("made", b"new"), NewFile("unmade", b"new"),
        NewFile("changed", b"n", overwrite=True),
    )  # fmt: skip
    entry = DiskJournal(tmp_path / "state/edits").begin(asked.request_id, asked.fingerprint)
    assert entry is not None
    known = [intent(b"old", b"new")] * 3 + [intent(b"", b"new")] * 2 + [intent(b"old", b"n")]
    entry.intend(Record(asked.fingerprint, "roots/test", "", ("",), tuple(known)))
    entry.close()

    async with opened_writer(top, tmp_path / "state") as writer:
        outcomes = await writer.write(asked)
        again = await writer.write(asked)

    assert [type(outcome) for outcome in outcomes] == [
        WrittenFile, WrittenFile, ContentChangedError, WrittenFile, WrittenFile,
        ContentChangedError,
    ]  # fmt: skip
    assert written(outcomes[3]).size_delta == 3
    assert written(outcomes[0]).signature.inode == (top / "done").stat().st_ino
    assert [again[i] for i in (0, 1, 3, 4)] == [outcomes[i] for i in (0, 1, 3, 4)]
    assert (top / "changed").read_text() == "other"


def test_a_torn_line_counts_as_never_written(tmp_path: Path) -> None:
    """Red when lines have no checksum: zeros after a power failure would not even be JSON."""
    record = Record(FINGERPRINT, "roots/r", "d", ("", "x"), (None, intent(b"a", b"b")))
    outcomes: list[Outcome] = [
        WrittenFile(bytes(32), Signature(1, 2, 3, 4), -5), ContentChangedError.at("p", "m")
    ]  # fmt: skip
    first, second = intent_line(record), outcome_line(FINGERPRINT, outcomes)
    for cut in range(len(second)):
        for tail in (b"", bytes(5)):
            assert read_record(first + second[:cut] + tail) == (record, len(first))
    whole, length = read_record(first + second)
    assert length == len(first + second)
    assert whole.outcomes[0] == outcomes[0]

    journal = DiskJournal(tmp_path)
    entry = journal.begin("id", FINGERPRINT)
    assert entry is not None
    entry.intend(record)
    entry.close()
    [path] = entries(tmp_path)
    with path.open("ab") as file:
        file.write(second[:-3])
    entry = journal.begin("id", FINGERPRINT)
    assert entry is not None
    assert entry.record == record
    entry.finish(outcomes)
    entry.close()
    assert path.read_bytes() == first + second


def begin_and_finish(journal: Journal, request_id: str) -> None:
    entry = journal.begin(request_id, FINGERPRINT)
    assert entry is not None
    entry.finish([WrittenFile(bytes(32), Signature(1, 2, 3, 4), 0)])
    entry.close()


def is_known(journal: Journal, request_id: str) -> bool:
    entry = journal.begin(request_id, FINGERPRINT)
    assert entry is not None
    entry.close()
    return bool(entry.record.outcomes)


def test_requests_are_forgotten_after_a_day(tmp_path: Path) -> None:
    for kind in ("disk", "memory"):
        clock = Clock()
        folder = tmp_path / "disk"
        journal: Journal = (
            DiskJournal(folder, clock=clock) if kind == "disk" else MemoryJournal(clock=clock)
        )
        for name in ("old", "new"):
            begin_and_finish(journal, name)
            for path in entries(folder):
                if path.stat().st_mtime > 1_500_000_000:
                    os.utime(path, (clock.now, clock.now))
            clock.now += DAY_SECONDS - 10
        clock.now -= DAY_SECONDS - 30
        left = sum(journal.expire(shard) for shard in range(SHARDS))
        if kind == "disk":
            assert left == len(entries(folder)) == 1
        assert is_known(journal, "new")
        assert not is_known(journal, "old")


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
def test_the_day_of_a_request_begins_with_its_answer(tmp_path: Path, kept: str) -> None:
    """Red when it begins with the request: one that waited for a file is forgotten too soon."""
    clock = Clock()
    journal: Journal = MemoryJournal(clock=clock)
    if kept == "on disk":
        journal = DiskJournal(tmp_path, clock=clock)
    entry = journal.begin("id", FINGERPRINT)
    assert entry is not None
    entry.intend(Record(FINGERPRINT))
    for path in entries(tmp_path):
        os.utime(path, (clock.now, clock.now))
    clock.now += 100
    entry.finish([WrittenFile(bytes(32), Signature(1, 2, 3, 4), 0)])
    entry.close()
    for path in entries(tmp_path):
        assert path.stat().st_mtime > clock.now  # noted by the system, whose clock is ahead
        os.utime(path, (clock.now, clock.now))
    clock.now += DAY_SECONDS - 1
    assert sum(journal.expire(shard) for shard in range(SHARDS)) == 1
    assert is_known(journal, "id")
    clock.now += 2
    assert sum(journal.expire(shard) for shard in range(SHARDS)) == 0
    assert not is_known(journal, "id")


def test_an_expired_entry_that_nobody_removed_yet_is_a_new_request(tmp_path: Path) -> None:
    clock = Clock()
    journal = DiskJournal(tmp_path, clock=clock)
    begin_and_finish(journal, "id")
    [path] = entries(tmp_path)
    os.utime(path, (clock.now, clock.now))
    clock.now += DAY_SECONDS + 1
    entry = journal.begin("id", file_digest(b"another"))
    assert entry is not None
    assert entry.record == Record()
    entry.close()


def test_a_full_journal_forgets_the_oldest_and_refuses_when_all_are_new(tmp_path: Path) -> None:
    """Red without a limit: the folder grows by an entry a request for a day."""
    clock = Clock()
    journal = DiskJournal(tmp_path, JournalLimits(entries=4 * SHARDS), clock)
    shard = file_digest(b"0").hex()[:2]
    names = [str(i) for i in range(8000) if file_digest(str(i).encode()).hex()[:2] == shard][:8]
    for position, name in enumerate(names[:4]):
        begin_and_finish(journal, name)
        newest = max(entries(tmp_path), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (clock.now + position, clock.now + position))
    with pytest.raises(OverloadedError) as raised:
        journal.begin(names[4], FINGERPRINT)
    assert raised.value.retry_after_seconds is not None
    assert is_known(journal, names[0])

    clock.now += LEAST_KEPT_SECONDS + 1.5
    begin_and_finish(journal, names[4])
    assert len(entries(tmp_path)) == 4
    assert is_known(journal, names[3])


def test_a_request_under_way_is_never_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    journal = DiskJournal(tmp_path, clock=clock)
    entry = journal.begin("id", FINGERPRINT)
    assert entry is not None
    [path] = entries(tmp_path)
    os.utime(path, (0, 0))
    assert sum(journal.expire(shard) for shard in range(SHARDS)) == 1
    assert journal.begin("id", FINGERPRINT) is None
    entry.close()


async def test_the_upkeep_sweeps_what_the_dead_left_and_forgets_what_is_old(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when the journal names no folders, or old entries are never looked at."""
    left = f".lodestone-{'0' * 32}.tmp"
    top = make_files({f"sub/deep/{left}": "", f"other/{left}": "", "sub/a": ""})
    journal = DiskJournal(tmp_path / "state")
    for name, folders in (("dead", ("", "deep", "gone")), ("old", ())):
        entry = journal.begin(name, FINGERPRINT)
        assert entry is not None
        if name == "dead":
            entry.intend(Record(FINGERPRINT, "roots/test", "sub", folders, (intent(b"", b"x"),)))
        else:
            entry.finish([])
        entry.close()
    old = min(entries(tmp_path / "state"), key=lambda path: path.stat().st_size)
    os.utime(old, (0, 0))
    with ThreadPoolExecutor(1) as executor:
        upkeep = JournalUpkeep(journal, writable_root(top), executor)
        upkeep.start()
        await eventually(lambda: not temporary_files(top / "sub") and not old.exists())
        await upkeep.close()
    assert temporary_files(top) == [top / "other" / left]
    assert len(entries(tmp_path / "state")) == 1


async def test_a_state_folder_that_cannot_be_written_to_refuses_the_call(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"a": "old"})
    (tmp_path / "state").write_text("a file")
    async with opened_writer(top, tmp_path / "state") as writer:
        with pytest.raises(DependencyUnavailableError) as raised:
            await writer.write(request(edit("a", b"old", (0, 3, b"new"))))
    assert str(tmp_path) not in raised.value.message
    assert (top / "a").read_text() == "old"


def test_errors_of_a_full_disk_name_the_state_folder() -> None:
    assert isinstance(journal_error(OSError(errno.ENOSPC, "")), DiskFullError)
