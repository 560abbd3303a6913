"""What a person, an editor or a tool does to a tree."""

from __future__ import annotations

import mmap
import os
import random
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"a.py": "a", "b.py": "b", "d/x.py": "x", "d/e/y.py": "y", "big.py": "#" * 900}


def append(path: Path, text: str = "more") -> None:
    with path.open("a") as file:
        file.write(text)


def save_like_vim(path: Path) -> None:
    """Moves the file to a backup, writes it anew, removes the backup."""
    backup = path.with_name(path.name + "~")
    path.rename(backup)
    path.write_text("saved by vim")
    backup.unlink()


def save_like_emacs(path: Path) -> None:
    """Leaves a backup."""
    path.rename(path.with_name(path.name + "~"))
    path.write_text("saved by emacs")


def save_by_rename(path: Path) -> None:
    """Writes a new file beside it and renames that over it."""
    new = path.with_name("tmp-4913.py")
    with new.open("w") as file:
        file.write("saved")
        os.fsync(file.fileno())
    new.replace(path)


def write_through_mapping(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = ord("z")


def exchange(top: Path) -> None:
    (top / "a.py").rename(top / "t")
    (top / "b.py").rename(top / "a.py")
    (top / "t").rename(top / "b.py")


def recreate(path: Path) -> None:
    path.unlink()
    path.write_text("again")


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("b.py")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("f")


def renamed(old: str, new: str) -> tuple[str, ...]:
    return "renamed", new, old


def move_in(top: Path) -> None:
    outside = top.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "z.py").write_text("z")
    (outside / "skip.png").write_text("z")
    outside.rename(top / "in")


def checkout(top: Path) -> None:
    for number in range(20):
        place = top / f"p{number % 4}" / "q" / f"{number}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("new")
    shutil.rmtree(top / "d")
    recreate(top / "a.py")


def rename_twice(top: Path) -> None:
    (top / "d").rename(top / "d2")
    append(top / "d2" / "x.py")
    (top / "d2").rename(top / "d3")


def rename_and_back(top: Path) -> None:
    (top / "d").rename(top / "d2")
    (top / "d2").rename(top / "d")


class Monkey:
    """Does anything to a tree that a person or a tool might do."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = random.Random(seed)

    def act(self) -> None:
        action = self.random.choice([
            self.write, self.write, self.write, self.append, self.append, self.remove, self.rename,
            self.rename, self.make_folder, self.remove_folder, self.rename_folder, self.save,
            self.move_out, self.move_in, self.link, self.junk,
        ])  # fmt: skip
        with suppress(OSError):  # a name is taken by a folder, a folder goes into itself
            action()

    def folder(self) -> Path:
        folders = [self.top, *(p for p in self.top.rglob("*") if p.is_dir() and not p.is_symlink())]
        return self.random.choice(folders)

    def file(self) -> Path:
        files = [p for p in self.top.rglob("?.py") if p.is_file() or p.is_symlink()]
        return self.random.choice(files) if files else self.name()

    def name(self) -> Path:
        return self.folder() / f"{self.random.choice('abcdef')}.py"

    def write(self) -> None:
        self.name().write_text("w" * self.random.randrange(1200))

    def append(self) -> None:
        append(self.file(), "a" * self.random.randrange(1, 300))

    def remove(self) -> None:
        self.file().unlink()

    def rename(self) -> None:
        self.file().rename(self.name())

    def save(self) -> None:
        self.random.choice([save_like_vim, save_like_emacs, save_by_rename])(self.file())

    def make_folder(self) -> None:
        (self.folder() / self.random.choice("xyz")).mkdir()

    def remove_folder(self) -> None:
        if (folder := self.folder()) != self.top:
            shutil.rmtree(folder)

    def rename_folder(self) -> None:
        if (folder := self.folder()) != self.top:
            folder.rename(self.folder() / self.random.choice(["x", "y", "z", "node_modules"]))

    def move_out(self) -> None:
        if (folder := self.folder()) != self.top:
            folder.rename(self.top.parent / f"out{self.random.randrange(3)}")

    def move_in(self) -> None:
        (self.top.parent / f"out{self.random.randrange(3)}").rename(
            self.folder() / self.random.choice("xyz")
        )

    def link(self) -> None:
        self.name().symlink_to("a.py")

    def junk(self) -> None:
        (self.folder() / "f.log").write_text("x")
