"""The disk of the converted models is full: the start says so, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from services.embed.backends.measured import keep_measured
from services.runtime.exits import ExitCode
from tests.support.small_disk import mounted_disk
from tests.support.tiny_models import make_model
from tests.unit.embed.harness import bundled_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DISK_KIB = 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of a mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted_disk(folder, f"{_DISK_KIB}k"):
        yield folder


@pytest.mark.slow
def test_a_model_that_has_no_room_to_be_converted_says_so(small_disk: Path, tmp_path: Path) -> None:
    """Red when what OpenVINO says is told: the model does not convert, and torch may run it."""
    model = make_model(tmp_path / "tiny", bundled_folder())
    variables = {"LISTEN": f"unix:{tmp_path}/s", "MODEL": str(model), "CACHE_DIR": str(small_disk)}

    ended = subprocess.run(
        [sys.executable, "-m", "services.embed"],
        env={**os.environ, **{f"LODESTONE_EMBED_{name}": at for name, at in variables.items()}},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert ended.returncode == ExitCode.DISK_FULL
    assert "LODESTONE_EMBED_CACHE_DIR" in ended.stderr.splitlines()[-1]
    assert "torch" not in ended.stderr
    assert [path.suffix for path in small_disk.iterdir()] == [".lock"]


def test_a_measurement_that_has_no_room_leaves_nothing(small_disk: Path) -> None:
    """Red when its draft stays: each start leaves another one."""
    (small_disk / "filler").write_bytes(bytes(_DISK_KIB << 10))

    keep_measured(small_disk / "layout.json", {"streams": 2})

    assert [path.name for path in small_disk.iterdir()] == ["filler"]
