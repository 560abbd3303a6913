"""An editor that knows no lock saves between the read and the rename: its save is not lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.io import targets
from services.io.atomic import PutOptions
from services.io.errors import ContentChangedError
from services.io.file_changes import make
from services.io.origins import Origins
from services.io.temporaries import Sweeper
from tests.unit.io.writing import replacing, temporary_files, writable_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles


def save_in_place(path: Path) -> None:
    path.write_text("odd")


def save_by_rename(path: Path) -> None:
    beside = path.with_suffix(".saved")
    beside.write_text("odd")
    beside.rename(path)


def edit_while(top: Path, save: Callable[[Path], None]) -> None:
    """Edits `file`; what saves it does so when the new file is ready and not in place."""
    options = PutOptions(
        is_strong=False,
        origin_id="",
        origins=Origins(),
        sweeper=Sweeper(),
        before_rename=lambda: save(top / "file"),
    )
    with writable_root(top).open_tree("roots/test", "") as tree:
        make(tree, replacing("file", b"old", b"new"), 100, options)


@pytest.mark.parametrize("save", [save_in_place, save_by_rename])
def test_a_save_before_the_rename_wins(make_files: MakeFiles, save: Callable[[Path], None]) -> None:
    """Red when `replace_file` does not ask `is_unchanged` directly before its rename."""
    top = make_files({"file": "old"})
    with pytest.raises(ContentChangedError):
        edit_while(top, save)
    assert (top / "file").read_text() == "odd"
    assert not temporary_files(top)


def test_a_save_within_one_tick_of_the_clock_is_told_by_its_digest(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when size and times alone are compared: within a tick the file looks as it did."""
    monkeypatch.setattr(targets, "_times", lambda _: (0, 0, 0))
    top = make_files({"file": "old"})
    with pytest.raises(ContentChangedError):
        edit_while(top, save_in_place)
    assert (top / "file").read_text() == "odd"


def test_a_save_over_an_old_file_is_told_by_its_times(
    make_files: MakeFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when the times are not compared: the digest is asked for recent files alone."""
    monkeypatch.setattr(targets, "_RECENT_NS", -(10**18))
    top = make_files({"file": "old"})
    with pytest.raises(ContentChangedError):
        edit_while(top, save_in_place)
    assert (top / "file").read_text() == "odd"
