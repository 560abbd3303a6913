"""A tree with a way out of every kind, beside folders that no caller may see."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.io.model import Root, SymlinkPolicy
from services.io.paths import Tree

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "canary = 'never to be seen'\n"
TERABYTE = 1 << 40


@dataclass(frozen=True, slots=True)
class HostileTree:
    """Folders: `root/tree` is the tree, `root/other` lies beside it, `second` is another root."""

    place: Path

    @property
    def top(self) -> Path:
        """The tree."""
        return self.place / "root/tree"

    def open(self, policy: SymlinkPolicy, *, waits: bool = True) -> Tree:
        """Opens the tree under a policy, the two roots known."""
        root, second = (Root(n, str(self.place / n), policy) for n in ("root", "second"))
        return Tree(root, "tree", (root, second), waits=waits)


def make_hostile_tree(place: Path, canary_fd: int) -> HostileTree:
    """Makes the folders; `canary_fd` is an open file outside, for links through `/proc`."""
    tree = HostileTree(place)
    top = tree.top
    for path, text in {
        top / "plain.py": "plain = 1\n",
        top / "folder/deep.py": "deep = 1\n",
        place / "root/other/o.py": "o = 1\n",
        place / "second/s.py": "s = 1\n",
        place / "outside/canary.py": CANARY,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    links: dict[str, Path | str] = {
        "link_in": "plain.py",
        "link_root": "../other/o.py",
        "link_second": place / "second/s.py",
        "link_outside": place / "outside/canary.py",
        "link_up": "../../outside/canary.py",
        "dangling": "nowhere",
        "loop": "loop",
        "way_in": "folder",
        "way_root": "../other",
        "way_out": place / "outside",
        "way_up": "../..",
        "magic_fd": f"/proc/self/fd/{canary_fd}",
        "magic_root": f"/proc/self/root{place}/outside/canary.py",
        "magic_way": "/proc/self/root",
    }
    for name, target in links.items():
        (top / name).symlink_to(target)
    os.mkfifo(top / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()  # noqa: PTH109 - the path of a socket may have 107 bytes
        os.chdir(top)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    with (top / "sparse.py").open("wb") as file:
        file.truncate(TERABYTE)
    return tree
