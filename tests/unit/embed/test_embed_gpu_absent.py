"""What runs, and what the benchmark of a GPU says, where there is none."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from services.embed.backends import loading, torch_device
from services.embed.hosting.child import limit_memory
from services.embed.hosting.life import LoadRequest
from services.embed.model import ModelId
from services.embed.sources import FolderSource
from services.runtime.exits import StartError
from tests.bench.gpu import NOTHING_MEASURED
from tests.unit.embed.harness import bundled_folder, settings_of

if TYPE_CHECKING:
    from pathlib import Path


_BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""What torch's wheels for CUDA 13 name."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A driver, and a GPU that torch can use; what is set by this goes as well."""
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(loading, "_DRIVERS", (str(tmp_path / "missing"), str(driver)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: _BUILT_FOR)
    return monkeypatch


def test_a_gpu_that_torch_cannot_use_is_none(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Red when its driver is all that is looked at: `auto` then runs torch on the CPU."""
    assert loading.has_gpu()
    with gpu.context() as changed:
        changed.setattr(torch.cuda, "is_available", lambda: False)
        assert not loading.has_gpu()
    gpu.setattr(loading, "_DRIVERS", (str(tmp_path / "missing"),))
    assert not loading.has_gpu()


def test_a_gpu_without_kernels_in_this_torch_is_none(
    gpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when availability is all that is asked: the first kernel then ends the load."""
    gpu.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))

    assert not loading.has_gpu()
    assert torch_device.device_of_choice() == "cpu"
    assert '"capability": "7.0"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((6, 1), _BUILT_FOR, False),
        ((7, 0), _BUILT_FOR, False),
        ((7, 5), _BUILT_FOR, True),
        ((8, 9), _BUILT_FOR, True),
        ((9, 0), _BUILT_FOR, True),
        ((10, 3), _BUILT_FOR, True),
        ((11, 0), _BUILT_FOR, False),
        ((12, 1), _BUILT_FOR, True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((10, 0), ["sm_90", "compute_90"], True),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), [], True),
        ((9, 0), ["gfx90a"], True),
    ],
)
def test_code_for_a_gpu_is_found_by_the_names_of_what_torch_was_built_for(
    capability: tuple[int, int], built_for: list[str], *, runs: bool
) -> None:
    assert torch_device.has_kernels_for(capability, built_for) is runs


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.AcceleratorError("CUDA error: busy\nmore"), "(AcceleratorError: CUDA error: busy)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "too little memory"),
    ],
)
def test_a_gpu_that_does_not_answer_is_told_and_is_not_the_cpu(
    gpu: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    """Red when the process of the model dies of it: all that is told then is that it died."""

    def fail(*_: Any) -> tuple[int, int]:
        raise error

    gpu.setattr(torch.cuda, "get_device_capability", fail)
    source = FolderSource(ModelId("minilm"), bundled_folder())

    for backend in ("auto", "torch"):
        with pytest.raises(StartError, match=re.escape(told)):
            asyncio.run(loading.load(source, settings_of(model="minilm", backend=backend)))


def test_no_limit_of_address_space_takes_the_gpu_away(gpu: pytest.MonkeyPatch) -> None:
    """Red when it is set all the same: torch finds no GPU then, and the CPU serves in its place."""
    limits: list[object] = []
    gpu.setattr(resource, "setrlimit", lambda *limit: limits.append(limit))
    source = FolderSource(ModelId("minilm"), bundled_folder())

    for backend in ("auto", "torch"):
        with pytest.raises(StartError, match="LODESTONE_EMBED_ENGINE_MEMORY_BYTES"):
            limit_memory(LoadRequest(source, settings_of(model="minilm", backend=backend), 1 << 33))
    assert not limits
    limit_memory(LoadRequest(source, settings_of(model="minilm", backend="openvino"), 1 << 33))
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    limit_memory(LoadRequest(source, settings_of(model="minilm", backend="auto"), 1 << 33))
    assert limits == [(resource.RLIMIT_AS, (1 << 33, 1 << 33))] * 2


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
