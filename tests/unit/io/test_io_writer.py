"""A write leaves the old file or the new one, and keeps what is not content."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat

import pytest

from services.io.changes import Durability, NewFile, WrittenFile
from services.io.content import file_digest
from services.io.errors import (
    ContentChangedError,
    FileTooLargeError,
    FileUnreadableError,
    PathExistsError,
    PathNotFoundError,
)
from services.io.file_changes import make
from services.io.model import SkipReason
from services.io.names import NameRules
from services.io.origins import Origins
from services.io.temporaries import create_temporary, sweep_folder
from services.io.writer import WriteRules
from services.runtime.errors import InvalidRequestError, OverloadedError
from tests.unit.io.harness import NOBODY, MakeFiles, unprivileged
from tests.unit.io.writing import (
    edit,
    failed,
    opened_writer,
    put_options,
    replacing,
    request,
    temporary_files,
    writable_root,
    write,
    written,
)


async def test_edits_of_a_file_come_back_with_its_digest_signature_and_growth(
    make_files: MakeFiles,
) -> None:
    top = make_files({"sub/a.py": "one two three"})
    asked = edit("a.py", b"one two three", (0, 3, b"1"), (8, 13, b"3"))

    [outcome] = await write(top, asked, directory="sub")

    file = written(outcome)
    status = (top / "sub/a.py").stat()
    assert (top / "sub/a.py").read_bytes() == b"1 two 3"
    assert file.digest == file_digest(b"1 two 3")
    assert file.size_delta == -6
    assert file.signature == (7, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, False)
    assert not temporary_files(top)


async def test_each_file_ends_by_itself_in_the_order_of_the_request(make_files: MakeFiles) -> None:
    """Red when one bad file fails the call, or outcomes come in the order in which they end."""
    top = make_files({"a": "a", "b": "b", "c": "c"})
    overlapping = edit("a", b"a", (0, 1, b""), (0, 1, b"x"))

    outcomes = await write(
        top, replacing("c", b"c", b"C"), overlapping, replacing("b", b"?", b""),
        replacing("none", b"", b""), replacing("b", b"b", b"B"),
    )  # fmt: skip

    assert [type(o) for o in outcomes] == [
        WrittenFile, InvalidRequestError, ContentChangedError, PathNotFoundError, WrittenFile,
    ]  # fmt: skip
    assert [(top / name).read_text() for name in "abc"] == ["a", "B", "C"]
    digests = [written(outcomes[position]).digest for position in (0, 4)]
    assert digests == [file_digest(b"C"), file_digest(b"B")]


@pytest.mark.parametrize("durability", list(Durability))
async def test_mode_owner_and_attributes_are_kept(
    make_files: MakeFiles, durability: Durability
) -> None:
    """Red when the temporary file is put in place as it was created."""
    top = make_files({"a.sh": "old"})
    path = top / "a.sh"
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    path.chmod(0o2754)
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError:
        pytest.skip("the file system has no extended attributes")
    before = path.stat()

    async with opened_writer(top) as writer:
        [outcome] = await writer.write(
            request(replacing("a.sh", b"old", b"new"), durability=durability)
        )

    written(outcome)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o2754
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert os.getxattr(path, "user.note") == b"kept"


def test_a_file_is_written_with_the_rights_of_the_process_alone(make_files: MakeFiles) -> None:
    """Red without the question: a rename needs the rights of the folder alone.

    Red when set-user-id bits are kept though the owner is not: they would be another user's.
    """
    top = make_files({"closed": "old", "open": "old"})
    top.chmod(0o777)
    (top / "closed").chmod(0o444)
    (top / "open").chmod(0o4666)
    with writable_root(top).open_tree("roots/test", "") as tree, unprivileged():
        with pytest.raises(FileUnreadableError):
            make(tree, replacing("closed", b"old", b"new"), 100, put_options())
        make(tree, replacing("open", b"old", b"new"), 100, put_options())
    assert (top / "closed").read_text() == "old"
    status = (top / "open").stat()
    assert (top / "open").read_text() == "new"
    if os.geteuid() == 0:
        assert status.st_uid == NOBODY
        assert stat.S_IMODE(status.st_mode) == 0o666


async def test_other_names_of_a_file_keep_the_old_bytes(make_files: MakeFiles) -> None:
    top = make_files({"a": "old"})
    (top / "b").hardlink_to(top / "a")
    written((await write(top, replacing("a", b"old", b"new")))[0])
    assert ((top / "a").read_text(), (top / "b").read_text()) == ("new", "old")


async def test_a_file_may_not_grow_beyond_the_limit(make_files: MakeFiles) -> None:
    top = make_files({"a": "x" * 90, "big": "x" * 101})
    async with opened_writer(top, rules=WriteRules(100)) as writer:
        outcomes = await writer.write(
            request(
                edit("a", b"x" * 90, (0, 0, b"y" * 11)), replacing("big", b"x" * 101, b""),
                NewFile("new", b"x" * 101), NewFile("big", b"small", overwrite=True),
            )
        )  # fmt: skip
    assert [type(o) for o in outcomes] == [FileTooLargeError] * 3 + [WrittenFile]
    assert not (top / "new").exists()


async def test_a_new_file_replaces_nothing_unless_asked(make_files: MakeFiles) -> None:
    """Red when the new file is renamed into place without the question of who was first."""
    top = make_files({"there": "old"})
    (top / "dangling").symlink_to("nowhere")
    (top / "link").symlink_to("there")
    (top / "there").chmod(0o755)

    outcomes = await write(
        top, NewFile("there", b"x"), NewFile("dangling", b"x"), NewFile("link", b"x"),
        NewFile("new", b"n"), NewFile("there", b"newer", overwrite=True),
        NewFile("no/parent", b"x"), NewFile("a/b/c", b"deep", create_parents=True),
    )  # fmt: skip

    assert [type(o) for o in outcomes] == [PathExistsError] * 3 + [WrittenFile] * 2 + [
        PathNotFoundError, WrittenFile,
    ]  # fmt: skip
    assert written(outcomes[4]).size_delta == 2
    assert (top / "there").read_text() == "newer"
    assert (top / "there").stat().st_mode & 0o777 == 0o755
    assert (top / "a/b/c").read_text() == "deep"
    umask = os.umask(0)
    os.umask(umask)
    assert (top / "new").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (top / "new").stat().st_nlink == 1
    assert not (top / "nowhere").exists()


async def test_of_many_creations_of_one_file_one_wins(make_files: MakeFiles) -> None:
    top = make_files({"x": ""})
    async with opened_writer(top) as writer:
        answers = await asyncio.gather(
            *(writer.write(request(NewFile("new", b"%d" % i))) for i in range(20))
        )
    winners = [i for i, [outcome] in enumerate(answers) if isinstance(outcome, WrittenFile)]
    assert len(winners) == 1
    assert (top / "new").read_text() == str(winners[0])


async def test_of_many_edits_of_one_content_one_wins(make_files: MakeFiles) -> None:
    """Red with neither lock nor check before the rename: several win, and all but one are lost."""
    top = make_files({"a": "old"})
    async with opened_writer(top, threads=16) as writer:
        answers = await asyncio.gather(
            *(writer.write(request(replacing("a", b"old", b"%d" % i))) for i in range(40))
        )
    winners = [i for i, [outcome] in enumerate(answers) if isinstance(outcome, WrittenFile)]
    assert len(winners) == 1
    assert all(isinstance(o, (WrittenFile, ContentChangedError)) for [o] in answers)
    assert (top / "a").read_text() == str(winners[0])
    assert not temporary_files(top)


async def test_overwrites_of_one_file_all_succeed_and_one_is_last(make_files: MakeFiles) -> None:
    top = make_files({"x": ""})
    async with opened_writer(top) as writer:
        answers = await asyncio.gather(
            *(writer.write(request(NewFile("new", b"%d" % i, overwrite=True))) for i in range(20))
        )
    assert all(isinstance(outcome, WrittenFile) for [outcome] in answers)
    assert (top / "new").read_text() in {str(i) for i in range(20)}


async def test_a_file_that_stays_locked_is_told_after_the_wait(make_files: MakeFiles) -> None:
    top = make_files({"a": "old"})
    with (top / "a").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        async with opened_writer(top, rules=WriteRules(100, lock_wait_seconds=0.05)) as writer:
            [outcome] = await writer.write(request(replacing("a", b"old", b"new")))
    failed(outcome, OverloadedError)
    assert (top / "a").read_text() == "old"


async def test_a_written_version_has_its_origin_before_it_is_seen(make_files: MakeFiles) -> None:
    top = make_files({"a": "old"})
    origins = Origins()
    async with opened_writer(top, origins=origins) as writer:
        await writer.write(request(replacing("a", b"old", b"new"), origin_id="me"))
        await writer.write(request(NewFile("b", b"new"), origin_id="me"))
    for name in "ab":
        assert origins.origin_of((top / name).stat(), top.stat(), name) == "me"


async def test_what_dead_processes_left_is_removed_by_the_next_write(
    make_files: MakeFiles,
) -> None:
    """Red when the sweep does not ask for the lock: a live write loses its file."""
    top = make_files({"a": "old", ".lodestone-mine.tmp": "kept"})
    (top / f".lodestone-{'0' * 32}.tmp").write_text("left")
    fd = os.open(top, os.O_RDONLY)
    try:
        alive = create_temporary(fd, 0o600)
        written((await write(top, replacing("a", b"old", b"new")))[0])
        assert temporary_files(top) == [top / alive.name]
        os.close(alive.fd)
        assert sweep_folder(fd) == 1
    finally:
        os.close(fd)
    assert (top / ".lodestone-mine.tmp").read_text() == "kept"


def test_a_scan_leaves_temporary_files_out() -> None:
    assert NameRules().skip_reason(f".lodestone-{'0a' * 16}.tmp") is SkipReason.IGNORED
    assert NameRules().skip_reason(".lodestone-note.tmp") is None
