"""What a scan tells of links whose targets it cannot look at."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from services.io.model import SkipReason
from services.io.paths import Tree
from tests.unit.io.scanning import scan

if TYPE_CHECKING:
    from tests.unit.io.harness import MakeFiles


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_link_that_cannot_be_looked_at_is_unknown_and_not_gone(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Red when it counts as one that is not followed: its file would be taken as removed."""
    top = make_files({"a.py": "a"})
    (top / "link.py").symlink_to("a.py")

    def refused(tree: Tree, path: str) -> Any:
        assert path == "link.py"
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Tree, "open_link", refused)
    paths, summary, batches = scan(top)

    assert paths == ["a.py"]
    assert SkipReason.SYMLINK not in summary.skipped
    (warning,) = [warning for batch in batches for warning in batch.warnings]
    assert (warning.path, warning.is_directory) == ("link.py", True)


def test_links_that_lead_nowhere_are_skipped(make_files: MakeFiles) -> None:
    top = make_files({"a.py": "a"})
    (top / "nowhere.py").symlink_to("none.py")
    (top / "round.py").symlink_to("round.py")
    (top / "out.py").symlink_to("/etc/hostname")

    paths, summary, batches = scan(top)

    assert paths == ["a.py"]
    assert summary.skipped[SkipReason.SYMLINK] == 3
    assert not [warning for batch in batches for warning in batch.warnings]


def test_a_folder_that_two_links_lead_to_is_walked_once(make_files: MakeFiles) -> None:
    """Red where each is walked: links among folders outside then multiply without end."""
    top = make_files({"tree/z.py": ""})
    for place in ("one", "two"):
        (top / place).mkdir()
        (top / place / "a.py").touch()
        (top / "tree" / f"to-{place}").symlink_to(f"../{place}")
    (top / "tree/to-one-again").symlink_to("../one")
    (top / "one/to-two").symlink_to("../two")
    (top / "two/to-one").symlink_to("../one")
    paths, summary, _ = scan(top, directory="tree")
    assert paths == ["to-one-again/a.py", "to-one-again/to-two/a.py", "z.py"]
    assert summary.skipped == {SkipReason.SYMLINK: 3}


def test_what_lies_behind_a_link_to_a_folder_comes_in_byte_order(make_files: MakeFiles) -> None:
    """Red when a link is entered where its name sorts as a file's: before `lib-a.py`, `lib.py`.

    Whoever walks both this and a sorted table would take the run for broken, each time again.
    """
    top = make_files({"out/x.py": "", "out/y/z.py": ""})
    for place in ("lib-a.py", "lib.py", "lib0.py", "a.py", "lib!/b.py"):
        (top / "tree" / place).parent.mkdir(parents=True, exist_ok=True)
        (top / "tree" / place).touch()
    (top / "tree/lib").symlink_to("../out")
    (top / "tree/lib-link.py").symlink_to("../out/x.py")
    paths, summary, _ = scan(top, directory="tree")
    assert paths == [
        "a.py", "lib!/b.py", "lib-a.py", "lib-link.py", "lib.py", "lib/x.py", "lib/y/z.py",
        "lib0.py",
    ]  # fmt: skip
    assert summary.skipped == {}
    assert summary.files == len(paths)


def test_a_link_that_leads_to_a_file_when_its_place_comes_is_passed_over(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when it is told where a folder of its name sorts: out of order."""
    top = make_files({"out/x.py": "", "tree/lib-a.py": ""})
    (top / "tree/lib").symlink_to("../out")
    open_link = Tree.open_link

    def exchanging(tree: Tree, path: str) -> int:
        held = open_link(tree, path)
        (top / "tree/lib").unlink()
        (top / "tree/lib").symlink_to("../out/x.py")
        return held

    monkeypatch.setattr(Tree, "open_link", exchanging)
    paths, summary, _ = scan(top, directory="tree")
    assert paths == ["lib-a.py"]
    assert summary.skipped == {SkipReason.SYMLINK: 1}
