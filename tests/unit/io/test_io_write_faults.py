"""A write that fails or dies at any system call leaves the old file or the new one.

`strace` makes the N-th call of a kind fail, or kills the process there, for every kind and N that a
write makes. The tests skip where there is no strace or it may not trace.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pytest

from services.io.changes import WrittenFile
from services.io.content import file_digest
from services.io.edit_journal import SHARDS, DiskJournal
from services.io.journal_upkeep import JournalUpkeep
from tests.unit.io.injected_write import NEW, OLD, TOLD, TWO_FILES, asked_for, write_once
from tests.unit.io.writing import opened_writer, temporary_files, writable_root

if TYPE_CHECKING:
    from pathlib import Path

    from services.io.changes import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FAULTY_CALLS = ("openat", "openat2", "write", "pwrite64", "fsync", "rename", "renameat",
                "renameat2", "linkat", "mkdir", "mkdirat")  # fmt: skip
TRACED = ",".join((*FAULTY_CALLS, "access", "unlinkat"))
FAULTS = ("error=EIO", "error=ENOSPC", "error=EINTR", "signal=SIGKILL")
_CALL = re.compile(r"(\w+)\(")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.unit.io.injected_write"])
_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Run:
    """One write under strace: what its caller was told, None when it died, and its calls.

    Of several files each has its word, unless the call failed as a whole.
    """

    told: str | list[str] | None
    calls: list[str]

    def index_of(self, pattern: str) -> int:
        """Returns where the last call that matches stands."""
        found = [i for i, call in enumerate(self.calls) if re.search(pattern, call)]
        assert found, (pattern, self.calls)
        return found[-1]


@cache
def why_not_traced() -> str:
    """Returns why strace cannot be used here, or nothing."""
    if not shutil.which("strace"):
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-o", "/dev/null", "-e", "inject=getpgid:error=EIO", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"strace may not trace: {tried.stderr.strip()[:100]}" if tried.returncode else ""


@pytest.fixture(autouse=True)
def _need_strace() -> None:
    if reason := why_not_traced():
        pytest.skip(reason)


def make_tree(folder: Path) -> tuple[Path, Path]:
    """Makes a tree with files to edit and a folder for the journal."""
    top, state = folder / "tree", folder / "state"
    top.mkdir(parents=True)
    state.mkdir()
    for name in TWO_FILES:
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(OLD)
    return top, state


def traced_write(kind: str, top: Path, state: Path, fault: str = "") -> Run:
    """Runs one write in a process whose thread that writes is under strace."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=write_once, args=(theirs, kind, str(top), str(state)))
    process.start()
    theirs.close()
    assert ours.poll(_WAIT_SECONDS)
    thread = ours.recv()
    log = top.parent / "strace.log"
    inject = ["-e", f"inject={fault}"] if fault else []
    command = ["strace", "-p", str(thread), "-y", "-s", "16", "-o", str(log),
               "-e", f"trace={TRACED}", *inject]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        try:
            assert strace.stderr is not None
            assert "attached" in strace.stderr.readline()
            ours.send("go")
            assert ours.poll(_WAIT_SECONDS)
            try:
                told = ours.recv()
            except EOFError:
                told = None
            process.join(_WAIT_SECONDS)
        finally:
            process.kill()
            process.join()
            strace.wait(_WAIT_SECONDS)
    ours.close()
    return Run(told, log.read_text().splitlines())


def counted(run: Run) -> Counter[str]:
    """Returns how often each system call was made."""
    return Counter(match[1] for call in run.calls if (match := _CALL.match(call)))


def place_of(kind: str, top: Path) -> Path:
    return top / ("a/b/file" if kind == "create" else "file")


def content_of(kind: str, top: Path) -> bytes:
    place = place_of(kind, top)
    return place.read_bytes() if place.exists() else b""


async def repeated(kind: str, top: Path, state: Path) -> list[Outcome]:
    """Sends the same request once more, as after a restart and with nothing in the way."""
    async with opened_writer(top, journal=DiskJournal(state)) as writer:
        return await writer.write(asked_for(kind))


def swept(top: Path, state: Path) -> None:
    """Does what a start does about the dead."""
    with ThreadPoolExecutor(1) as executor:
        upkeep = JournalUpkeep(DiskJournal(state), writable_root(top), executor)
        for shard in range(SHARDS):
            upkeep.sweep(shard)


@pytest.mark.parametrize("kind", ["edit", "create", "overwrite"])
def test_success_is_told_when_file_and_folder_are_on_the_disk(kind: str, tmp_path: Path) -> None:
    """Red when the folder's fsync is left out, comes before the rename, or the intent's after."""
    top, state = make_tree(tmp_path)
    run = traced_write(kind, top, state)
    folder = re.escape(str(place_of(kind, top).parent))
    order = [
        run.index_of(rf"fsync\(\d+<{folder}/\.lodestone-\w+\.tmp>\) += 0"),
        run.index_of(r"(renameat2?|linkat)\(.* = 0"),
        run.index_of(rf"fsync\(\d+<{folder}>\) += 0"),
        run.index_of(re.escape(TOLD)),
    ]
    noted = [i for i, call in enumerate(run.calls) if re.search(rf"fsync\(\d+<{state}/", call)]
    assert run.told == "written"
    assert order == sorted(order), run.calls
    assert noted
    assert max(noted) < order[1]
    if kind == "create":
        for made in (top, top / "a"):
            assert run.index_of(rf"fsync\(\d+<{re.escape(str(made))}>\) += 0") < order[1]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["edit", "create", "overwrite"])
def test_a_write_that_fails_or_dies_at_any_call_leaves_the_old_file_or_the_new_one(
    kind: str, fault: str, tmp_path: Path
) -> None:
    """Red when content is written in place, or temporary files stay after an error.

    Also when the journal is not written before the rename, or not before the temporary file; when
    the rename does not wait for its flush; and when a failed fsync is told as success. Red as well
    when a kind of call that every write makes is not traced any more: it would fail nowhere.
    """
    top, state = make_tree(tmp_path / "whole")
    whole = traced_write(kind, top, state)
    assert whole.told == "written"
    counts = counted(whole)
    old = b"" if kind == "create" else OLD
    assert counts["fsync"], counts
    assert counts["openat"] + counts["openat2"], counts
    in_place = ("linkat",) if kind == "create" else ("rename", "renameat", "renameat2")
    assert sum(counts[name] for name in in_place), counts
    ends: Counter[str] = Counter()
    for name in FAULTY_CALLS:
        for number in range(1, counts[name] + 1):
            top, state = make_tree(tmp_path / f"{name}-{number}")
            run = traced_write(kind, top, state, f"{name}:{fault}:when={number}")
            where = (name, number, run.told, run.calls)
            content = content_of(kind, top)
            assert any("INJECTED" in call or "SIGKILL" in call for call in run.calls), where
            assert content in {old, NEW}, where
            if run.told == "written":
                assert content == NEW, where
            elif run.told != "ERROR_REASON_DEPENDENCY_UNAVAILABLE" and run.told is not None:
                assert content == old, where
            if run.told is not None:
                assert not temporary_files(top), where
            swept(top, state)
            assert not temporary_files(top), where
            [outcome] = asyncio.run(repeated(kind, top, state))
            assert isinstance(outcome, WrittenFile), where
            assert content_of(kind, top) == NEW, where
            refused = name == "fsync" and fault in {"error=EIO", "error=ENOSPC"}
            assert not refused or run.told != "written", where
            assert "EINTR" not in fault or run.told == "written", where
            assert "SIGKILL" not in fault or run.told is None, where
            ends[str(run.told)] += 1
            shutil.rmtree(top.parent)
    assert sum(ends.values()) > 10


@pytest.mark.parametrize("fault", ["error=EIO", "signal=SIGKILL"])
def test_a_request_for_two_files_that_fails_or_dies_at_any_call_is_finished_by_its_repetition(
    fault: str, tmp_path: Path
) -> None:
    """Each file is the old one or the new one, and the caller is told which, file by file.

    Who repeats the request makes what is missing: what is in place counts as written, also where
    the first caller was told nothing. A third one is answered from the journal, nothing is touched.
    Red when what was intended is not looked at: the file in place then counts as CONTENT_CHANGED.
    """
    top, state = make_tree(tmp_path / "whole")
    whole = traced_write("two", top, state)
    assert whole.told == ["written", "written"]
    counts = counted(whole)
    halves = 0
    for name in FAULTY_CALLS:
        for number in range(1, counts[name] + 1):
            top, state = make_tree(tmp_path / f"{name}-{number}")
            run = traced_write("two", top, state, f"{name}:{fault}:when={number}")
            where = (name, number, run.told, run.calls)
            contents = [(top / file).read_bytes() for file in TWO_FILES]
            assert any("INJECTED" in call or "SIGKILL" in call for call in run.calls), where
            assert set(contents) <= {OLD, NEW}, where
            halves += len(set(contents)) == 2
            assert (run.told is None) == ("SIGKILL" in fault), where
            if isinstance(run.told, str):
                assert contents == [OLD, OLD], where
            each = run.told if isinstance(run.told, list) else []
            for told, content in zip(each, contents[: len(each)], strict=True):
                if told == "written":
                    assert content == NEW, where
                elif told != "ERROR_REASON_DEPENDENCY_UNAVAILABLE":
                    assert content == OLD, where
            swept(top, state)
            assert not temporary_files(top), where
            outcomes = asyncio.run(repeated("two", top, state))
            for file, outcome in zip(TWO_FILES, outcomes, strict=True):
                assert isinstance(outcome, WrittenFile), where
                assert outcome.digest == file_digest((top / file).read_bytes()), where
                assert (top / file).read_bytes() == NEW, where
            before = [(top / file).stat() for file in TWO_FILES]
            assert asyncio.run(repeated("two", top, state)) == outcomes, where
            assert [(top / file).stat() for file in TWO_FILES] == before, where
            shutil.rmtree(top.parent)
    assert halves > 1, "no fault came between the two files"
