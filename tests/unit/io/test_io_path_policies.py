"""One table of hostile paths, held to by reads, parses and scans, under each policy.

It runs with the kernel's resolver and with the walk for kernels without it, which follows no link.
Red with `RESOLVE_BENEATH` left out, with a path check that lets `..` pass, with the roots not asked
about across roots, and with O_NOFOLLOW or the look at each component left out of the walk.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.io import beneath
from services.io.content import file_digest
from services.io.errors import FileNotRegularError, PathOutsideTreeError
from services.io.loader import FileLoader
from services.io.model import (
    FileToParse,
    ParsedFile,
    Root,
    SkippedFile,
    SkipReason,
    SnippetRef,
    SymlinkPolicy,
)
from services.io.names import NameRules
from services.io.parser.file import ParseLimits, parse_file
from services.io.paths import Tree, real_path
from services.io.reader import Reader
from services.io.scanner import ScanRules, TreeScan
from services.runtime.errors import LodestoneError
from tests.unit.io.hostile_tree import CANARY, HostileTree, make_hostile_tree
from tests.unit.io.parsing import GRAMMARS

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTSIDE, MISSING, SPECIAL = "PATH_OUTSIDE_TREE", "FILE_NOT_FOUND", "FILE_NOT_REGULAR"
DENY, WITHIN, ACROSS = SymlinkPolicy.DENY, SymlinkPolicy.WITHIN_ROOT, SymlinkPolicy.ACROSS_ROOTS
LIMIT = 1 << 16
WORDS = ("plain", "deep", "o", "s")

Row = tuple[str, str, str]
TABLE: dict[str, Row] = {  # outcome under deny, within_root and across_roots; else the text
    "plain.py": ("plain", "plain", "plain"),
    "folder/deep.py": ("deep", "deep", "deep"),
    "link_in": (OUTSIDE, "plain", "plain"),
    "link_root": (OUTSIDE, "o", "o"),
    "link_second": (OUTSIDE, OUTSIDE, "s"),
    "link_outside": (OUTSIDE, OUTSIDE, OUTSIDE),
    "link_up": (OUTSIDE, OUTSIDE, OUTSIDE),
    "dangling": (OUTSIDE, MISSING, MISSING),
    "loop": (OUTSIDE, OUTSIDE, OUTSIDE),
    "way_in/deep.py": (OUTSIDE, "deep", "deep"),
    "way_root/o.py": (OUTSIDE, "o", "o"),
    "way_out/canary.py": (OUTSIDE, OUTSIDE, OUTSIDE),
    "way_up/outside/canary.py": (OUTSIDE, OUTSIDE, OUTSIDE),
    "way_out/none.py": (OUTSIDE, OUTSIDE, OUTSIDE),  # what is not there is not told either
    "way_out/canary.py/x": (OUTSIDE, OUTSIDE, OUTSIDE),
    "magic_fd": (OUTSIDE, OUTSIDE, OUTSIDE),
    "magic_root": (OUTSIDE, OUTSIDE, OUTSIDE),
    "magic_way/etc/passwd": (OUTSIDE, OUTSIDE, OUTSIDE),
    "plain.py/below": (MISSING, MISSING, MISSING),
    "none": (MISSING, MISSING, MISSING),
    "folder": (SPECIAL, SPECIAL, SPECIAL),
    "pipe": (SPECIAL, SPECIAL, SPECIAL),
    "socket": (SPECIAL, SPECIAL, SPECIAL),
    "sparse.py": ("FILE_TOO_LARGE", "FILE_TOO_LARGE", "FILE_TOO_LARGE"),
}
NO_PATHS = ["", "/", "/etc/passwd", "..", "../other/o.py", "folder/../plain.py", "folder/..", ".",
            "./plain.py", "folder//deep.py", "folder/", "plain.py\0", "\0", "\ud800", "x" * 256,
            "x/" * 2050 + "x", "folder/../../other/o.py"]  # fmt: skip
TABLE |= dict.fromkeys(NO_PATHS, (OUTSIDE, OUTSIDE, OUTSIDE))
LINKS = {path for path, row in TABLE.items() if row[0] == OUTSIDE and path not in NO_PATHS}


def outcome(path: str, policy: SymlinkPolicy, resolver: str) -> str:
    """Returns what the table says; the walk follows no link whatever the policy says."""
    if resolver == "walk" and path in LINKS:
        return OUTSIDE
    return TABLE[path][[DENY, WITHIN, ACROSS].index(policy)]


def refused(*_: object) -> int:
    """Answers as a sandbox that lets no call through which it does not know."""
    ctypes.set_errno(errno.EPERM)
    return -1


@pytest.fixture(params=["kernel", "walk", "walk in a sandbox"])
def resolver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has paths resolved by the kernel, or as where there is no `openat2` or it is refused.

    Red when the one or the other error counts as one of the path.
    """
    how = str(request.param)
    if how == "walk":
        monkeypatch.setattr(beneath, "_SYS_OPENAT2", 100_000)  # the kernel answers ENOSYS
    elif how != "kernel":
        monkeypatch.setattr(beneath, "_syscall", refused)
    return how.partition(" ")[0]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[HostileTree]:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/canary.py").write_text(CANARY)
    fd = os.open(tmp_path / "outside/canary.py", os.O_RDONLY)
    yield make_hostile_tree(tmp_path, fd)
    os.close(fd)


def reason_of(error: object) -> str:
    assert isinstance(error, LodestoneError)
    return error.reason.removeprefix("ERROR_REASON_")


@pytest.mark.parametrize("policy", list(SymlinkPolicy))
def test_reads_keep_to_the_table(tree: HostileTree, policy: SymlinkPolicy, resolver: str) -> None:
    known = [file_digest(text.encode()) for text in (CANARY, *(f"{n} = 1\n" for n in WORDS))]
    refs = [SnippetRef(path, 0, 1, digest) for path in TABLE for digest in known]
    with ThreadPoolExecutor(2) as threads:
        reader = Reader(threads, FileLoader(LIMIT), permits=2, max_answer_bytes=LIMIT)
        results = asyncio.run(reader.read_snippets(partial(tree.open, policy), refs))
    told = dict.fromkeys(TABLE, "")
    for ref, result in zip(refs, results, strict=True):
        if isinstance(result, bytes):
            told[ref.path] = ["CANARY", *WORDS][known.index(ref.file_digest)]
        elif reason_of(result) != "CONTENT_CHANGED":
            told[ref.path] = reason_of(result)
    assert told == {path: outcome(path, policy, resolver) for path in TABLE}


@pytest.mark.parametrize("policy", list(SymlinkPolicy))
def test_parses_keep_to_the_table(tree: HostileTree, policy: SymlinkPolicy, resolver: str) -> None:
    digests = {file_digest(f"{word} = 1\n".encode()): word for word in WORDS}
    told = {}
    with tree.open(policy) as opened:
        for path in TABLE:
            limits = ParseLimits(LIMIT, 100, 256)
            try:
                result = parse_file(opened, FileToParse(0, path), limits, GRAMMARS)
            except LodestoneError as error:
                told[path] = reason_of(error)
                continue
            if isinstance(result, SkippedFile):
                assert result.reason is SkipReason.TOO_LARGE
                told[path] = "FILE_TOO_LARGE"
            else:
                assert isinstance(result, ParsedFile)
                told[path] = digests.get(result.digest, "CANARY")
    assert told == {path: outcome(path, policy, resolver) for path in TABLE}


@pytest.mark.parametrize("policy", list(SymlinkPolicy))
def test_scans_keep_to_the_table(tree: HostileTree, policy: SymlinkPolicy, resolver: str) -> None:
    """Links back into the tree are skipped, as their targets are found where they lie."""
    with tree.open(policy) as opened:
        batches = list(TreeScan(opened, ScanRules(LIMIT, NameRules())).batches())
    found = {file.path for batch in batches for file in batch.files}
    expected = {"plain.py", "folder/deep.py"}
    if resolver == "kernel" and policy is not DENY:
        expected |= {"link_root", "way_root/o.py"}
    if resolver == "kernel" and policy is ACROSS:
        expected |= {"link_second"}
    assert found == expected
    summary = batches[-1].summary
    assert summary is not None
    assert summary.skipped[SkipReason.SPECIAL] == 2
    assert summary.skipped[SkipReason.TOO_LARGE] == 1


@pytest.mark.parametrize("policy", list(SymlinkPolicy))
@pytest.mark.parametrize("directory", [*NO_PATHS[1:], "way_out", "tree/way_out", "tree/magic_way"])
def test_no_folder_of_a_tree_leads_out(
    tree: HostileTree, policy: SymlinkPolicy, directory: str, resolver: str
) -> None:
    root = Root("root", str(tree.place / "root"), policy)
    with pytest.raises(LodestoneError) as raised:
        Tree(root, directory)
    assert reason_of(raised.value) in {OUTSIDE, MISSING}


@pytest.mark.parametrize("top", ["root/tree", ""])
@pytest.mark.parametrize("policy", [DENY, WITHIN])
def test_links_out_of_a_tree_that_is_a_root_or_beneath_everything_lead_nowhere(
    tree: HostileTree, policy: SymlinkPolicy, top: str, resolver: str
) -> None:
    """Beneath the root of the file system, which confines nothing, links stay in the tree."""
    path, directory = (str(tree.top), "") if top else ("/", str(tree.top).lstrip("/"))
    with Tree(Root("test", path, policy), directory) as opened:
        for link in LINKS - {"link_in", "way_in/deep.py", "dangling", "loop"}:
            with pytest.raises(PathOutsideTreeError):
                opened.open_file(link)


def test_beneath_everything_devices_are_not_even_opened(tree: HostileTree, resolver: str) -> None:
    """Red when the file is opened first and looked at then: a writer at a pipe would wake up."""
    everything = Root("all", "/", WITHIN)
    woken = threading.Event()

    def write() -> None:
        fd = os.open(tree.top / "pipe", os.O_WRONLY)  # waits for a reader
        woken.set()
        os.close(fd)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with Tree(everything, str(tree.top).lstrip("/")) as opened:
            for _ in range(300):
                with pytest.raises(FileNotRegularError):
                    opened.open_file("pipe")
        with Tree(everything, "dev") as opened:
            for name in ("null", "tty"):
                with pytest.raises(LodestoneError):
                    opened.open_file(name)
        assert not woken.is_set()
    finally:
        reader = os.open(tree.top / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


def test_beneath_everything_no_descriptor_of_the_server_is_reached(
    tree: HostileTree, resolver: str
) -> None:
    """`/proc/self/fd` holds what the server has open, and links that are more than paths."""
    fd = os.open(tree.place / "outside/canary.py", os.O_RDONLY)
    try:
        for directory, path in (("proc/self/fd", str(fd)), ("proc/self/root", "etc/passwd")):
            with (
                pytest.raises(LodestoneError) as raised,
                Tree(Root("all", "/", WITHIN), directory) as opened,
            ):
                opened.open_file(path)
            assert reason_of(raised.value) in {OUTSIDE, SPECIAL, MISSING}
    finally:
        os.close(fd)


PART = st.sampled_from(
    ["..", ".", "", "folder", "plain.py", "deep.py", "way_in", "way_out", "way_up", "way_root",
     "o.py", "outside", "canary.py", "root", "tree", "magic_way", "link_up", "proc", "self", "é"]
) | st.text(max_size=3)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(parts=st.lists(PART, max_size=6), policy=st.sampled_from(list(SymlinkPolicy)))
@example(parts=["way_out", "canary.py"], policy=WITHIN)
@example(parts=["way_out", "new.py"], policy=ACROSS)
@example(parts=["folder", ".."], policy=DENY)
@example(parts=["link_up"], policy=WITHIN)
def test_no_made_up_path_leads_out(
    tree: HostileTree, parts: list[str], policy: SymlinkPolicy
) -> None:
    """What is opened lies beneath the root; what lies there by a plain path is opened.

    So does the folder that a file is written to. Red when that is opened by its joined path, or
    when `..` is taken for a name.
    """
    path = "/".join(parts)
    real = os.path.realpath(f"{tree.top}/{path}") if "\0" not in path else ""
    allowed = (f"{tree.place}/root/", f"{tree.place}/second/")[: 2 if policy is ACROSS else 1]
    with tree.open(policy) as opened:
        for follow in (True, False):
            with suppress(LodestoneError):
                fd, name = opened.open_parent(path, follow=follow)
                try:
                    folder = real_path(fd)
                finally:
                    os.close(fd)
                assert f"{folder}/".startswith(allowed)
                assert name not in {"", ".", ".."}
                assert "/" not in name
                if follow:
                    is_link = Path(folder, name).is_symlink()
                    assert not is_link or not Path(folder, name).exists()
        try:
            fd, _ = opened.open_file(path)
        except LodestoneError:
            is_plain = path and set(parts).isdisjoint({"", ".", ".."}) and path[0] != "/"
            is_inside = real.startswith(f"{tree.place}/root/") and Path(real).is_file()
            assert not (is_plain and is_inside and policy is not DENY)
            return
        try:
            assert real_path(fd) == real
            assert real.startswith(allowed)
        finally:
            os.close(fd)
