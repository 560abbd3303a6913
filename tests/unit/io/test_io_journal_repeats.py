"""A request whose first attempt failed for a reason that passes is a request like any other."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.io import atomic
from services.io import writer as writer_module
from services.io.changes import Intent, NewFile
from services.io.content import file_digest
from services.io.edit_journal import SHARDS, DiskJournal
from services.io.edit_records import Record
from services.io.errors import ContentChangedError, NotProvenDurableError, PathNotFoundError
from services.io.journal_room import JournalLimits
from services.io.journal_upkeep import JournalUpkeep
from services.io.memory_journal import MemoryJournal
from services.io.model import Root, SymlinkPolicy
from services.io.roots import Roots
from services.io.temporaries import create_temporary
from services.io.writer import WriteRules
from services.runtime.errors import OverloadedError
from tests.unit.io.writing import (
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

    from services.io.atomic import PutOptions
    from services.io.changes import Change, Outcome, WriteRequest
    from services.io.targets import Place
    from services.io.temporaries import Temporary
    from services.io.writer import Writer
    from tests.unit.io.harness import MakeFiles

RULES = WriteRules(100, lock_wait_seconds=0.05)


async def write_while_locked(writer: Writer, asked: WriteRequest, path: Path) -> Outcome:
    """Sends a request for a file that somebody else has."""
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        [outcome] = await writer.write(asked)
    failed(outcome, OverloadedError)
    return outcome


def die_in_the_second_attempt(state: Path, asked: WriteRequest, top: Path) -> None:
    """Leaves what a process leaves that dies before its rename: a journal and a temporary file."""
    entry = DiskJournal(state / "edits").begin(asked.request_id, asked.fingerprint)
    assert entry is not None
    known = Intent(file_digest(b"old"), file_digest(b"new"), 0)
    entry.intend(replace(entry.record, intents=(known,)))
    entry.close()
    fd = os.open(top, os.O_RDONLY)
    os.close(create_temporary(fd, 0o600).fd)
    os.close(fd)


async def test_what_a_later_attempt_left_is_swept_at_the_start(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when a request with any end counts as ended: the first attempt's was none for good."""
    top, state = make_files({"a": "old"}), tmp_path / "state"
    asked = request(replacing("a", b"old", b"new"))
    async with opened_writer(top, state, rules=RULES) as writer:
        await write_while_locked(writer, asked, top / "a")
    die_in_the_second_attempt(state, asked, top)
    assert temporary_files(top)

    with ThreadPoolExecutor(1) as executor:
        upkeep = JournalUpkeep(DiskJournal(state / "edits"), writable_root(top), executor)
        assert sum(upkeep.sweep(shard) for shard in range(SHARDS)) == 1
    assert not temporary_files(top)


@pytest.mark.parametrize("kind", ["edit", "overwrite"])
@pytest.mark.parametrize("policy", [SymlinkPolicy.WITHIN_ROOT, SymlinkPolicy.ACROSS_ROOTS])
async def test_what_a_write_through_a_link_left_is_swept_at_the_start(
    make_files: MakeFiles, tmp_path: Path, policy: SymlinkPolicy, kind: str
) -> None:
    """Red when the journal names the link's folder: what is left lies where the link leads.

    That is beside the tree of the call, or in another root.
    """
    top, state = make_files({"sub/x": "", "beside/deep/a": "old"}), tmp_path / "state"
    target = top / "beside/deep/a"
    roots = writable_root(top, policy)
    if policy is SymlinkPolicy.ACROSS_ROOTS:
        first = Root("test", str(top / "sub"), policy, read_only=False)
        roots = Roots([first, Root("other", str(top / "beside"), policy, read_only=False)])
    (top / "sub/link").symlink_to("../beside/deep/a")
    directory = "sub" if policy is SymlinkPolicy.WITHIN_ROOT else ""
    change: Change = replacing("link", b"old", b"new")
    if kind == "overwrite":
        change = NewFile("link", b"new", overwrite=True)
    asked = request(change, directory=directory)
    async with opened_writer(roots, state, rules=RULES) as writer:
        await write_while_locked(writer, asked, target)
    die_in_the_second_attempt(state, asked, target.parent)
    assert temporary_files(top)

    with ThreadPoolExecutor(1) as executor:
        upkeep = JournalUpkeep(DiskJournal(state / "edits"), roots, executor)
        assert sum(upkeep.sweep(shard) for shard in range(SHARDS)) == 1
    assert not temporary_files(top)


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
async def test_an_overwrite_that_waited_in_vain_overwrites_what_came_meanwhile(
    make_files: MakeFiles, tmp_path: Path, kept: str
) -> None:
    """Red when what was intended is held against the file though nothing was put in place."""
    top = make_files({"a": "old"})
    state = tmp_path / "state" if kept == "on disk" else None
    asked = request(NewFile("a", b"new", overwrite=True))
    async with opened_writer(top, state, rules=RULES) as writer:
        await write_while_locked(writer, asked, top / "a")
        (top / "a").write_text("of others")
        [outcome] = await writer.write(asked)
        assert written(outcome).size_delta == len("new") - len("of others")
        assert await writer.write(asked) == [outcome]
    assert (top / "a").read_text() == "new"


@pytest.mark.parametrize("wait_seconds", [RULES.lock_wait_seconds, 0.0])
@pytest.mark.parametrize("kept", ["on disk", "in memory"])
async def test_an_overwrite_that_lost_its_race_for_the_name_overwrites_what_won(
    make_files: MakeFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: str,
    wait_seconds: float,
) -> None:
    """Red when an attempt counts as one that may be in place since it, or one before, was about to.

    Another process makes the file just before ours gets its name, and holds it.
    """
    top = make_files({"x": ""})
    state = tmp_path / "state" if kept == "on disk" else None
    asked = request(NewFile("a", b"new", overwrite=True))
    record = atomic._record_origin

    with ExitStack() as held:

        def lose(place: Place, temporary: Temporary, options: PutOptions) -> None:
            if not (top / "a").exists():
                (top / "a").write_text("of others")
                fcntl.flock(held.enter_context((top / "a").open()), fcntl.LOCK_EX)
            record(place, temporary, options)

        monkeypatch.setattr(atomic, "_record_origin", lose)
        rules = replace(RULES, lock_wait_seconds=wait_seconds)
        async with opened_writer(top, state, rules=rules) as writer:
            failed((await writer.write(asked))[0], OverloadedError)
            assert (top / "a").read_text() == "of others"
            held.close()
            [outcome] = await writer.write(asked)
            assert written(outcome).size_delta == len("new") - len("of others")
            assert await writer.write(asked) == [outcome]
    assert (top / "a").read_text() == "new"


async def test_an_overwrite_that_may_be_in_place_overwrites_nothing_of_others(
    make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when every attempt without an end counts as one that put nothing in place."""
    top = make_files({"a": "old"})
    asked = request(NewFile("a", b"new", overwrite=True))

    def not_flushed(place: Place, *, is_strong: bool) -> None:
        raise NotProvenDurableError.at(place.path, f"Not flushed, {is_strong=}.")

    async with opened_writer(top, tmp_path / "state") as writer:
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "flush_folder", not_flushed)
            failed((await writer.write(asked))[0], NotProvenDurableError)
        assert (top / "a").read_text() == "new"
        (top / "a").write_text("of others")
        failed((await writer.write(asked))[0], ContentChangedError)
    assert (top / "a").read_text() == "of others"


async def test_an_attempt_that_could_not_look_leaves_what_is_known_of_the_one_before(
    make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when an intent is forgotten by an attempt that did not see whether it was carried out."""
    top, state = make_files({"a": "new"}), tmp_path / "state"
    asked = request(replacing("a", b"old", b"new"))
    entry = DiskJournal(state / "edits").begin(asked.request_id, asked.fingerprint)
    assert entry is not None
    known = Intent(file_digest(b"old"), file_digest(b"new"), 0)
    entry.intend(Record(asked.fingerprint, "roots/test", "", ("",), (known,)))
    entry.close()

    def overloaded(*_: object, **__: object) -> None:
        raise OverloadedError("Too many files are open.", retry_after_seconds=1)

    async with opened_writer(top, state) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(writer_module, "look", overloaded)
            failed((await writer.write(asked))[0], OverloadedError)
        written((await writer.write(asked))[0])


@pytest.mark.parametrize("kept", ["on disk", "in memory"])
async def test_a_request_of_which_nothing_was_noted_takes_no_room(
    make_files: MakeFiles, tmp_path: Path, kept: str
) -> None:
    """Red where calls to a folder that is not there fill the journal and shut all writers out."""
    top, limits = make_files({"a": "a"}), JournalLimits(entries=3)
    state = tmp_path / "state"
    journal = DiskJournal(state, limits) if kept == "on disk" else MemoryJournal(limits)
    async with opened_writer(top, journal=journal) as writer:
        for _ in range(600):
            with pytest.raises(PathNotFoundError):
                await writer.write(request(replacing("a", b"a", b"b"), directory="no/such"))
        again = request(replacing("a", b"a", b"b"))
        [first] = await writer.write(again)
        assert await writer.write(again) == [written(first)]
    assert len([path for path in state.rglob("*") if path.is_file()]) == (kept == "on disk")
