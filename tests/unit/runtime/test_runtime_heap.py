"""What is done about glibc's heap, looked at in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import ctypes, sys
from services.runtime.heap import keep_large_blocks_apart

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost").split()]

libc.mallinfo2.restype = Info
if sys.argv[1] == "apart":
    assert keep_large_blocks_apart()
libc.free(libc.malloc(4 << 20))
mapped = libc.mallinfo2().hblks
libc.malloc(1 << 20)
print(libc.mallinfo2().hblks - mapped)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize(("how", "mapped"), [("apart", "1"), ("as glibc does", "0")])
def test_a_large_block_is_mapped_by_itself_also_after_a_larger_one_was_freed(
    how: str, mapped: str
) -> None:
    """The second case is the control: what glibc does by itself."""
    told = subprocess.run(
        [sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == mapped
