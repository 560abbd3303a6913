"""Source trees to measure on: a real one, and several times as much that no cache knows."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LONG_WORD = re.compile(rb"\b[A-Za-z_]{6,}\b")
_REWRITTEN = {".py", ".js", ".html", ".css", ".txt", ".md", ".xml"}


def multiply(source: Path, target: Path, times: int) -> None:
    """Copies a tree `times` times into `target`, each copy with texts of its own.

    The first long word of each line gets the copy's number, so nearly every node is new to the
    model while sizes, languages and structure stay those of the real tree.
    """
    for number in range(times):
        copy = target / f"copy{number}"
        shutil.copytree(source, copy)
        for path in copy.rglob("*"):
            if path.is_file() and path.suffix in _REWRITTEN:
                path.write_bytes(_rewrite(path.read_bytes(), b"%d" % number))


def _rewrite(content: bytes, mark: bytes) -> bytes:
    return b"\n".join(
        _LONG_WORD.sub(lambda match: match.group() + mark, line, count=1)
        for line in content.split(b"\n")
    )
