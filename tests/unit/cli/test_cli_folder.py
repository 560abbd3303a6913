"""The data folder is ours, whole, and used by one command at a time."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from services.cli.folder import DataFolder, default_root, find_folder, locked, open_folder
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_folder_is_made_with_its_marker(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "data"

    folder = open_folder(root, print)

    assert json.loads(folder.marker.read_text())["format"] == 1
    assert find_folder(root) == folder
    assert root.stat().st_mode & 0o066 == 0


def test_opening_twice_keeps_the_first_marker(tmp_path: Path) -> None:
    open_folder(tmp_path / "data", print)
    before = (tmp_path / "data" / "lodestone.json").read_bytes()

    open_folder(tmp_path / "data", print)

    assert (tmp_path / "data" / "lodestone.json").read_bytes() == before


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    mode = tmp_path.stat().st_mode

    with pytest.raises(StartError, match="not a Lodestone data folder") as refusal:
        open_folder(tmp_path, print)

    assert refusal.value.code == ExitCode.DATA_FOLDER
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    assert tmp_path.stat().st_mode == mode


def test_a_file_is_no_data_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError, match="not a folder"):
        open_folder(tmp_path / "file", print)


@pytest.mark.parametrize("content", ['{"format": 99}', "not json", "[]"])
def test_another_format_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "lodestone.json").write_text(content)

    with pytest.raises(StartError, match="--data-dir") as refusal:
        find_folder(tmp_path)

    assert refusal.value.code == ExitCode.DATA_FOLDER


def test_a_start_that_was_killed_before_the_marker_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("123")
    (tmp_path / "lodestone.json.tmp").write_text("{")

    folder = open_folder(tmp_path, print)

    assert folder.marker.exists()


def test_a_folder_that_another_command_just_makes_is_never_foreign(tmp_path: Path) -> None:
    """Goes red when anything is made in the folder before its marker (seen red)."""
    roots = [tmp_path / str(number) for number in range(50)]
    with ThreadPoolExecutor(10) as pool:
        opened = list(pool.map(_open_at_once, roots))

    assert opened == [{DataFolder(root)} for root in roots]


def _open_at_once(root: Path) -> set[DataFolder]:
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(_open_and_fill, [root] * 4))


def _open_and_fill(root: Path) -> DataFolder:
    folder = open_folder(root, print)
    folder.logs.mkdir(exist_ok=True)
    return folder


def test_a_held_lock_is_waited_for_and_then_told(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "data", print)
    told: list[str] = []

    with (
        locked(folder, print),
        pytest.raises(StartError, match=f"pid {os.getpid()}") as refusal,
        locked(folder, told.append, timeout_seconds=0.7),
    ):
        pass

    assert refusal.value.code == ExitCode.DATA_FOLDER
    assert len(told) == 1


def test_a_lock_that_is_released_in_time_is_taken(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "data", print)
    held, taken = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(folder, print):
            held.set()
            taken.wait(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with locked(folder, print, timeout_seconds=5):
        taken.set()
    thread.join()


def test_the_variable_names_the_default_folder(tmp_path: Path) -> None:
    assert default_root({"LODESTONE_DATA_DIR": str(tmp_path)}) == tmp_path
    assert default_root({}).is_absolute()


def test_paths_lie_inside_the_folder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)

    assert folder.log("io") == tmp_path / "logs" / "io.log"
