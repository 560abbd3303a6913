"""A process that exchanges a folder and a file with links that lead out, as fast as it can."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INSIDE = b"def inside():\n    return 1\n"
CANARY = b"def canary():\n    return 'never to be seen'\n"

_EXCHANGE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
pairs = [(sys.argv[1].encode() + a, sys.argv[1].encode() + b)
         for a, b in ((b"/folder", b"/way_out"), (b"/file.py", b"/link_out"))]
print("ready", flush=True)
while True:
    for first, second in pairs:
        if libc.renameat2(-100, first, -100, second, 2) != 0:
            sys.exit(f"renameat2: {ctypes.get_errno()}")
"""


@dataclass(frozen=True, slots=True)
class Arena:
    """Where the race takes place: `top` is the root, beside it lies `outside`."""

    top: Path

    paths = ("folder/file.py", "file.py")


def make_arena(place: Path) -> Arena:
    """Makes the two folders; a file of the same name lies in both, and one only outside."""
    top, outside = place / "top", place / "outside"
    (top / "folder").mkdir(parents=True)
    outside.mkdir()
    (top / "folder/file.py").write_bytes(INSIDE)
    (top / "file.py").write_bytes(INSIDE)
    (outside / "file.py").write_bytes(CANARY)
    (outside / "only_outside.py").write_bytes(CANARY)
    (top / "way_out").symlink_to(outside)
    (top / "link_out").symlink_to(outside / "file.py")
    return Arena(top)


@contextmanager
def exchanging(arena: Arena) -> Iterator[None]:
    """Runs the process while the body does; its own death is an error."""
    with subprocess.Popen(
        [sys.executable, "-c", _EXCHANGE, str(arena.top)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
            assert process.poll() is None, "the exchange ended by itself"
        finally:
            process.kill()
