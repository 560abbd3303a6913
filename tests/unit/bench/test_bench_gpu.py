"""The benchmark of a GPU, where there is none: what becomes of its parts, and that they run."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.bench import gpu, gpu_kit, gpu_parts
from tests.bench.figures import figure

if TYPE_CHECKING:
    from pathlib import Path

_TELLING = "import json, sys, time; tell = lambda **told: print(json.dumps(told), flush=True)\n"


def _part(program: str) -> list[str]:
    return [sys.executable, "-c", _TELLING + program]


def _told(value: float) -> str:
    return repr(figure(value, 2.0, met=False))


def test_a_part_that_fails_or_hangs_costs_what_it_had_still_to_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when figures are taken at a part's end, and when its children outlive it."""
    child = tmp_path / "child"
    commands = {
        "fails": _part(f"tell(a={_told(1)}); print('some text'); sys.exit('no kernel image')"),
        "hangs": _part(
            f"tell(b={_told(2)})\nimport subprocess, pathlib\n"
            f"one = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            f"pathlib.Path({str(child)!r}).write_text(str(one.pid)); time.sleep(60)"
        ),
        "dies": _part(f"tell(c={_told(3)}); import os; os.abort()"),
        "works": _part(f"tell(d={_told(4)})"),
        "late": _part(f"tell(e={_told(5)})"),
    }
    limits = {**dict.fromkeys(commands, 30.0), "hangs": 6.0, "late": 1.0}
    started = time.monotonic()

    figures, failed = gpu.run_parts(commands, limits, seconds=100)

    assert time.monotonic() - started < 40
    assert {name: entry["value"] for name, entry in figures.items()} == {
        "a": 1, "b": 2, "c": 3, "d": 4,
    }  # fmt: skip
    assert failed == ["fails", "hangs", "dies", "late"]
    told = capsys.readouterr().err
    assert "a: 1, goal 2.0: MISSED" in told
    assert "some text" in told
    assert "stopped at its limit" in told
    pid = int(child.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the parts run on the CPU what they run on a GPU."""
    for name, value in {
        "synchronize": None, "memory_reserved": 0, "get_device_name": "none",
        "get_device_capability": (9, 0),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    make: Any = SentenceTransformer.__init__

    def on_cpu(self: Any, *folders: str, device: str, **others: Any) -> None:
        make(self, *folders, device="cpu", **others)

    monkeypatch.setattr(SentenceTransformer, "__init__", on_cpu)
    monkeypatch.setattr(gpu_parts, "_ROUNDS", 1)
    monkeypatch.setattr(gpu_parts, "_ONE_BY_ONE", 2)
    monkeypatch.setattr(gpu_parts, "_WORD_COUNTS", (1, 33, 900))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (gpu_parts.rates, {"short_to_library", "long_texts_per_second", "mixed_to_library"}),
        (gpu_parts.graphs, {"graphs", "graphs_one_short_to_none", "graphs_long_to_none"}),
        (gpu_parts.service, {"service_short_texts_per_second", "service_mixed_tokens_per_second"}),
        (
            gpu_parts.accuracy,
            {"float16_least_cosine", "float32_least_cosine", "bfloat16_alone_to_together",
             "padded_float16_least_cosine", "found_by_auto"},
        ),
    ],
)  # fmt: skip
def test_each_part_tells_its_figures(
    part: Any, expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the device is real: the model, the library, the service."""
    texts = [f"def function_{n}(value):\n    return value + {n}" for n in range(5)] + ["x " * 600]

    part(texts)

    lines = capsys.readouterr().out.splitlines()
    told = {name: entry for line in lines for name, entry in json.loads(line).items()}
    assert {f"gpu_{name}" for name in expected} <= told.keys()
    for name, entry in told.items():
        if "cosine" in name or "to_together" in name:
            assert entry["met"], (name, entry)


def test_weights_that_travel_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for data in (b"", b"a", os.urandom(1001), os.urandom(1000)):
        path.write_bytes(data)
        gpu_kit.squeeze(path)
        assert not path.exists()
        gpu_kit.expand(path)
        assert path.read_bytes() == data
        assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_what_travels_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red when a name of the list is none of the lock: pip would take any release."""
    names = {line for line in gpu_kit.NAMES.read_text().split("\n") if line and line[0] != "#"}
    locked = {line.partition("==")[0] for line in gpu_kit.LOCK.read_text().splitlines()}

    assert names <= locked


def test_a_part_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = partial(gpu.main, ["rates", "other"])
    with pytest.raises(SystemExit):
        run()
    assert "no such part: other" in capsys.readouterr().err
