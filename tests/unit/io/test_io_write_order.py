"""What is on the disk by when, and how files are opened, as the kernel is asked for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from services.io.changes import Intent
from services.io.content import file_digest
from services.io.edit_journal import SHARDS, DiskJournal
from services.io.edit_records import Record
from tests.unit.io.injected_write import NEW, OLD, TOLD, asked_for
from tests.unit.io.test_io_write_faults import Run, make_tree, traced_write, why_not_traced

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _need_strace() -> None:
    if reason := why_not_traced():
        pytest.skip(reason)


def flush_of(run: Run, path: Path) -> int:
    """Returns where the last flush of a file or folder stands."""
    return run.index_of(rf"fsync\(\d+<{re.escape(str(path))}>\) += 0")


def test_a_repetition_that_finds_the_file_in_place_flushes_it_before_it_tells(
    tmp_path: Path,
) -> None:
    """Its first process died after the rename. Red when file or folder are not flushed again."""
    top, state = make_tree(tmp_path)
    asked = asked_for("edit")
    entry = DiskJournal(state).begin(asked.request_id, asked.fingerprint)
    assert entry is not None
    known = Intent(file_digest(OLD), file_digest(NEW), len(NEW) - len(OLD))
    entry.intend(Record(asked.fingerprint, "roots/test", "", ("",), (known,)))
    entry.close()
    (top / "file").write_bytes(NEW)

    run = traced_write("edit", top, state)

    assert run.told == "written"
    assert not [call for call in run.calls if call.startswith("rename")]
    assert flush_of(run, top / "file") < flush_of(run, top) < run.index_of(re.escape(TOLD))


@pytest.mark.parametrize("kind", ["edit", "create", "overwrite"])
def test_a_temporary_file_is_a_new_file(kind: str, tmp_path: Path) -> None:
    """Red without O_EXCL or O_NOFOLLOW: who guesses the name is written to, or through."""
    top, state = make_tree(tmp_path)
    run = traced_write(kind, top, state)
    made = run.calls[run.index_of(r"openat\(.*\.lodestone-\w+\.tmp\", .*O_CREAT")]
    assert {"O_EXCL", "O_NOFOLLOW"} <= set(re.findall(r"O_\w+", made)), made


@pytest.mark.parametrize("died_before", [False, True], ids=["new", "made by one that died"])
def test_a_new_folder_of_the_journal_is_on_the_disk_before_the_file_is(
    tmp_path: Path,
    died_before: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """Red when the folders above it are not flushed: a power failure takes what was intended."""
    top, state = make_tree(tmp_path)
    for shard in range(SHARDS if died_before else 0):
        (state / f"{shard:02x}").mkdir()
    run = traced_write("edit", top, state)
    in_place = run.index_of(r"rename(at2?)?\(.* = 0")
    for folder in (state, state.parent, state.parent.parent):
        assert flush_of(run, folder) < in_place, run.calls


def test_an_added_root_is_on_the_disk_before_it_is_told(tmp_path: Path) -> None:
    """Red when the new list is not flushed before its rename, or the folder not after it."""
    top, state = make_tree(tmp_path)
    run = traced_write("root", top, state)
    order = [
        flush_of(run, state / "roots.json.new"),
        run.index_of(r"rename(at2?)?\(.* = 0"),
        flush_of(run, state),
        run.index_of(re.escape(TOLD)),
    ]
    assert run.told == "written"
    assert order == sorted(order), run.calls
