"""Sockets fit into the 107 bytes that the kernel gives their paths."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.cli.folder import DataFolder
from services.cli.sockets import choose_run_folder
from services.runtime.exits import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder that stands for the machine's temporary one."""
    short = Path(tempfile.mkdtemp(prefix="ls-"))
    monkeypatch.setattr("tempfile.tempdir", str(short))
    yield short
    shutil.rmtree(short)


def test_a_short_folder_holds_its_own_sockets(temporary: Path) -> None:
    assert choose_run_folder(DataFolder(temporary), {}).root == temporary


def test_a_long_temporary_folder_is_passed_over(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = temporary / ("x" * 80)
    long.mkdir()

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(long))
        run = choose_run_folder(DataFolder(tmp_path / ("y" * 100)), {})
    run.root.rmdir()

    assert len(os.fsencode(run.postgres / ".s.PGSQL.5432.lock")) <= 107


@pytest.mark.parametrize("name", ["x" * 100, "with space", "100%", "naïve"])
def test_a_long_or_odd_path_gets_a_short_folder_of_the_user(
    tmp_path: Path, temporary: Path, name: str
) -> None:
    folder = DataFolder(tmp_path / name)

    run = choose_run_folder(folder, {})

    assert run.root.parent == temporary
    assert run.root.stat().st_mode & 0o066 == 0
    assert choose_run_folder(folder, {}) == run
    assert len(os.fsencode(run.postgres / ".s.PGSQL.5432.lock")) <= 107


def test_two_data_folders_never_share_sockets(tmp_path: Path, temporary: Path) -> None:
    first = choose_run_folder(DataFolder(tmp_path / ("x" * 100)), {})
    second = choose_run_folder(DataFolder(tmp_path / ("y" * 100)), {})

    assert first != second


def test_a_link_in_place_of_the_short_folder_is_refused(tmp_path: Path, temporary: Path) -> None:
    folder = DataFolder(tmp_path / ("x" * 100))
    place = choose_run_folder(folder, {}).root
    place.rmdir()
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StartError, match="belongs to somebody else"):
        choose_run_folder(folder, {})
