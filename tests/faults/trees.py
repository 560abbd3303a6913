"""Generated source trees, each with texts of its own, and edits of them drawn from a seed."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from pathlib import Path

_NAMES_A_FILE = 8
_FUNCTION = '''def work_{seed}_{number}(value):
    """Adds {number} for tree {seed}."""
    total = value + {number}
    return total


'''


def write_generated(folder: Path, seed: str, *, files: int = 24, functions: int = 8) -> Path:
    """Writes a tree whose texts no other seed has; every fifth file repeats texts of the first."""
    seed = seed.replace("-", "_")
    for file in range(files):
        path = folder / f"package_{file % 4}" / f"part_{file:04}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        first = 0 if file % 5 == 4 else file * functions
        text = "".join(
            _FUNCTION.format(seed=seed, number=first + number) for number in range(functions)
        )
        path.write_text(f'"""Part {file} of {seed}."""\n\n{text}', encoding="utf-8")
    return folder


class Editor:
    """Edits a tree as people do: one step at a time, drawn from a seed.

    At `most_files` files one is deleted where another would come, and names and numbers come again:
    such a tree may be edited for ever, and neither it nor the words in it become more.
    """

    def __init__(self, folder: Path, seed: str, *, most_files: int = 1_000_000) -> None:
        self._folder = folder
        self._most_files = most_files
        self._seed = seed.replace("-", "_")
        self._random = random.Random(f"edits of {seed}")
        self._count = 0
        self.history: dict[tuple[str, bytes], bytes] = {}
        """Every content that a path has had, by path and digest."""

        for path in folder.rglob("*.py"):
            self._note(path, path.read_bytes())

    def step(self) -> str:
        """Makes one edit; returns its kind."""
        self._count += 1
        kinds = ("edit", "edit", "add", "delete", "rename", "copy", "rewrite")
        kind = self._random.choice(kinds)
        files = sorted(self._folder.rglob("*.py"))
        if kind in {"add", "copy"} and len(files) >= self._most_files:
            kind = "delete"
        if kind == "add" or len(files) < 4:
            self._write(self._new_name(), self._function())
            return "add"
        path = self._random.choice(files)
        match kind:
            case "edit":
                text = path.read_text("utf-8")
                self._write(path, text.replace("value + ", f"value + {self._number} + ", 1))
            case "delete":
                path.unlink()
            case "rename":
                target = self._new_name()
                target.parent.mkdir(parents=True, exist_ok=True)
                self._note(target, path.read_bytes())
                path.rename(target)
            case "copy":
                self._write(self._new_name(), path.read_text("utf-8"))
            case _:
                self._write(path, path.read_text("utf-8") + self._function())
        return kind

    @property
    def _number(self) -> int:
        return self._count % (_NAMES_A_FILE * self._most_files)

    def _function(self) -> str:
        return _FUNCTION.format(seed=self._seed, number=1_000_000 + self._number)

    def _new_name(self) -> Path:
        return self._folder / f"package_{self._number % 4}" / f"new_{self._number:05}.py"

    def _write(self, path: Path, text: str) -> None:
        """Replaces a file at once, as editors do: no reader sees half of it."""
        self._note(path, text.encode())
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)  # noqa: PTH105 - as rename(2) is called

    def _note(self, path: Path, content: bytes) -> None:
        """Notes what a path is about to hold: noted before, so that no reader is ahead of it."""
        name = path.relative_to(self._folder).as_posix()
        self.history[name, blake3(content).digest()] = content
