"""What the benchmark of a GPU says where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.bench.gpu import NOTHING_MEASURED


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
