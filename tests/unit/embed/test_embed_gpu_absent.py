"""What runs, and what the benchmark of a GPU says, where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from services.embed.backends import loading
from tests.bench.gpu import NOTHING_MEASURED

if TYPE_CHECKING:
    from pathlib import Path


def test_a_gpu_that_torch_cannot_use_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when its driver is all that is looked at: `auto` then runs torch on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(loading, "_NVIDIA_DRIVER", str(driver))

    assert not loading.has_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.has_gpu()
    monkeypatch.setattr(loading, "_NVIDIA_DRIVER", str(tmp_path / "missing"))
    assert not loading.has_gpu()


@pytest.mark.slow
def test_the_benchmark_says_that_there_is_no_device_and_measures_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu"],
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == NOTHING_MEASURED
    assert ended.stdout == "{}\n"
    assert "There is no CUDA device" in ended.stderr
