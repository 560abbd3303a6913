"""Who may open an edited file: nobody who might not before, however much of it can be kept."""

from __future__ import annotations

import os
import stat
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from services.io.atomic import PutOptions
from services.io.attributes import ACL
from services.io.file_changes import make
from services.io.origins import Origins
from services.io.temporaries import Sweeper
from tests.unit.io.writing import replacing, temporary_files, writable_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles

SERVER, OWNER, GROUP, STRANGER = 41000, 42000, 43000, 44000
DEFAULT_ACL = "system.posix_acl_default"
CAPABILITY = "security.capability"
BIND_LOW_PORTS = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # from linux/capability.h
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_NO_ID = 0xFFFFFFFF

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


class Held(NamedTuple):
    """What decides who may open a file."""

    uid: int
    gid: int
    mode: int
    acl: bytes


def held(path: Path) -> Held:
    status = path.stat()
    has_acl = ACL in os.listxattr(path)
    acl = os.getxattr(path, ACL) if has_acl else b""
    return Held(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), acl)


def acl_of(
    *named: tuple[int, int, int], owner: int = 6, group: int, mask: int, other: int
) -> bytes:
    """Returns an ACL as `setxattr` takes it; `named` are kind, rights and id."""
    entries = [(_USER_OBJ, owner, _NO_ID), *(n for n in named if n[0] == _USER),
               (_GROUP_OBJ, group, _NO_ID), *(n for n in named if n[0] == _GROUP),
               (_MASK, mask, _NO_ID), (_OTHER, other, _NO_ID)]  # fmt: skip
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def set_acl(path: Path, name: str, acl: bytes) -> None:
    try:
        os.setxattr(path, name, acl)
    except OSError as error:
        pytest.skip(f"the file system of the tests has no ACLs: {error}")


@contextmanager
def as_server(*groups: int) -> Iterator[None]:
    """Runs the body as a user and group of the server's own, a member of `groups` besides."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(SERVER)
    os.seteuid(SERVER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


@pytest.fixture
def top(make_files: MakeFiles) -> Path:
    """A tree of one file, `file`, in a folder that everybody may write to."""
    top = make_files({"file": "old"})
    os.chown(top / "file", OWNER, GROUP)
    top.chmod(0o777)
    return top


def edit(top: Path, *groups: int, as_root: bool = False) -> Held:
    """Edits `file` as the server; returns what is held of the new one."""
    with writable_root(top).open_tree("roots/test", "") as tree:
        options = PutOptions(is_strong=False, origin_id="", origins=Origins(), sweeper=Sweeper())
        change = replacing("file", b"old", b"new")
        if as_root:
            make(tree, change, 100, options)
        else:
            with as_server(*groups):
                make(tree, change, 100, options)
    assert (top / "file").read_text() == "new"
    return held(top / "file")


def test_the_group_of_a_shared_tree_is_kept_where_the_owner_cannot_be(top: Path) -> None:
    """Red when owner and group are set by one call alone: the refused owner drops both."""
    (top / "file").chmod(0o2664)
    assert edit(top, GROUP) == Held(SERVER, GROUP, 0o664, b"")


@pytest.mark.parametrize(
    ("mode", "kept"),
    [(0o666, 0o666), (0o646, 0o644), (0o676, 0o666), (0o606, 0o600), (0o4747, 0o744)],
)
def test_who_was_no_member_of_the_lost_group_gets_nothing_of_its_rights(
    top: Path, mode: int, kept: int
) -> None:
    """The group of the server was among others, the old one is now: both have what both had.

    Red for 0676 when the mode is kept as it was, for 0606 and 0646 when only the group's part is
    cut: members of the old group were shut out, and are others now. `file` is open for writing to
    the server as the one of others.
    """
    (top / "file").chmod(mode)
    assert edit(top) == Held(SERVER, SERVER, kept, b"")


def test_what_was_granted_to_the_old_bytes_is_not_granted_to_the_new_ones(top: Path) -> None:
    """Red when every attribute is kept: any other write takes a file's capabilities away."""
    program = top / "file"
    try:
        os.setxattr(program, CAPABILITY, BIND_LOW_PORTS)
        os.setxattr(program, "user.note", b"kept")
    except OSError as error:
        pytest.skip(f"the file system of the tests has no capabilities: {error}")
    edit(top, as_root=True)
    assert os.listxattr(program) == ["user.note"]


def test_a_lost_group_takes_the_acl_along_and_leaves_what_all_had(top: Path) -> None:
    """Red when the mode's middle part alone counts: with an ACL that is the mask.

    The user who was shut out by name is among others afterwards. Red too when the ACL is copied:
    its group would be the server's.
    """
    others = 6
    named = ((_USER, 4, STRANGER), (_USER, 6, SERVER))
    set_acl(top / "file", ACL, acl_of(*named, group=6, mask=6, other=others))
    assert edit(top) == Held(SERVER, SERVER, 0o644, b"")


def test_an_acl_is_kept_with_owner_and_group(top: Path) -> None:
    """Red when the ACL is left out of what is copied."""
    set_acl(top / "file", ACL, acl_of((_USER, 6, STRANGER), group=4, mask=6, other=0))
    before = held(top / "file")
    assert edit(top, as_root=True) == before


@pytest.mark.parametrize("mode", [0o660, 0o640])
def test_the_default_acl_of_a_folder_gives_nobody_an_edited_file(top: Path, mode: int) -> None:
    """Red when attributes are only added: the temporary file inherits the folder's ACL."""
    (top / "file").chmod(mode)
    default = acl_of((_USER, 6, STRANGER), owner=7, group=5, mask=7, other=5)
    set_acl(top, DEFAULT_ACL, default)
    assert edit(top, as_root=True) == Held(OWNER, GROUP, mode, b"")


def test_no_step_is_wider_than_the_old_file(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when the mode is set before the folder's ACL is gone: its mask opens it to a stranger.

    Looks at the temporary file before and after each step.
    """
    (top / "file").chmod(0o660)
    set_acl(top, DEFAULT_ACL, acl_of((_USER, 6, STRANGER), owner=7, group=5, mask=7, other=5))
    steps: list[tuple[str, Held]] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def step(*args: object) -> object:
            result = real(*args)
            steps.append((name, held(temporary_files(top)[0])))
            return result

        monkeypatch.setattr(os, name, step)

    for name in ("removexattr", "fchown", "setxattr", "fchmod"):
        spy(name)
    edit(top, as_root=True)

    assert {name for name, _ in steps} >= {"removexattr", "fchown", "fchmod"}
    for _, (uid, gid, mode, acl) in steps:
        assert not (acl and mode & 0o070), steps
        assert not mode & 0o007, steps
        assert not mode & 0o070 or (uid, gid) == (OWNER, GROUP), steps
