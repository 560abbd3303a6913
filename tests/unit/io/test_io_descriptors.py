"""Where the system gives out no more descriptors a call says so, whichever one it is that lacks."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from services.io.atomic import PutOptions
from services.io.changes import NewFile
from services.io.file_changes import look, make
from services.io.loader import FileLoader
from services.io.model import Root, SymlinkPolicy
from services.io.names import NameRules
from services.io.origins import Origins
from services.io.paths import Tree
from services.io.scanner import ScanRules, TreeScan
from services.io.temporaries import Sweeper
from services.runtime.errors import LodestoneError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.unit.io.harness import MakeFiles

MANY = 12
"""More descriptors than any of the calls holds at once."""


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leaves this process that many descriptors to open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - numbers
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + MANY + 2, hard))
    held: list[int] = []
    try:
        while True:
            try:
                held.append(os.dup(0))
            except OSError:
                break
        for fd in held[:count]:
            os.close(fd)
        del held[:count]
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def scan(tree: Tree) -> bool:
    batches = list(TreeScan(tree, ScanRules(1 << 20, NameRules())).batches())
    warnings = [warning.error for batch in batches for warning in batch.warnings]
    assert all(isinstance(error, OverloadedError) for error in warnings)
    return not warnings


def read(tree: Tree) -> bool:
    return FileLoader(1 << 20).load(tree, "sub/a.py").data == b"a"


def write(tree: Tree) -> bool:
    change = NewFile("sub/new.py", b"x", overwrite=True, create_parents=True)
    look(tree, change, 1 << 20, known=None, is_strong=True)
    options = PutOptions(is_strong=True, origin_id="", origins=Origins(), sweeper=Sweeper())
    return make(tree, change, 1 << 20, options) is not None


@pytest.mark.parametrize("policy", [SymlinkPolicy.WITHIN_ROOT, SymlinkPolicy.ACROSS_ROOTS])
@pytest.mark.parametrize("directory", ["", "dir"])
@pytest.mark.parametrize("call", [scan, read, write])
def test_each_descriptor_that_lacks_is_told_as_a_limit(
    make_files: MakeFiles, call: Callable[[Tree], bool], directory: str, policy: SymlinkPolicy
) -> None:
    """Red where a descriptor is doubled outside of what makes errors of ours: INTERNAL is told."""
    top = make_files({"sub/a.py": "a", "dir/sub/a.py": "a"})
    root = Root("test", str(top), policy, read_only=False)
    ended: list[bool] = []
    for count in range(MANY + 1):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted alone
        with descriptors_left(count):
            try:
                with Tree(root, directory) as tree:
                    ended.append(call(tree))
            except LodestoneError as error:
                assert isinstance(error, OverloadedError)  # noqa: PT017 - not of every count
                ended.append(False)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert ended == sorted(ended)
    assert not ended[0]
    assert ended[-1]
