"""A suite of benchmarks ends with one line of JSON, whatever becomes of a measurement."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from tests.bench import suite
from tests.bench.figures import figure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def modules() -> Iterator[list[str]]:
    """Modules that measure, one that fails, one that repeats a figure, and one that is none."""

    def fails(_: Path) -> suite.Figures:
        raise RuntimeError("no server")

    def measures(scratch: Path) -> suite.Figures:
        assert not list(scratch.iterdir())
        (scratch / "left-over").touch()
        return {"a": figure(1.0, 2.0, met=False)}

    made = {
        "io_fails": fails, "io_a": measures, "io_again": measures, "io_none": None,
        "io_b": lambda _: {"b": figure(2.0)},
    }  # fmt: skip
    for name, measure in made.items():
        module = ModuleType(name)
        if measure is not None:
            module.measure = measure  # type: ignore[attr-defined]
        sys.modules[name] = module
    yield list(made)
    for name in made:
        del sys.modules[name]


def test_one_that_fails_costs_its_own_figures_alone(
    modules: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when an error of a measurement ends the run: what was measured before it is lost."""
    monkeypatch.setattr(suite, "module_names", lambda *_: modules)
    assert suite.main(["io"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out) == {"a": figure(1.0, 2.0, met=False), "b": figure(2.0)}
    assert told.out.count("\n") == 1
    assert "failed: io_fails, io_again" in told.err


def test_a_missed_goal_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, modules: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "module_names", lambda *_: modules[1:2])
    assert suite.main(["io"]) == 0
    assert "a: 1.0, goal 2.0: MISSED" in capsys.readouterr().err


def test_modules_are_found_by_service_and_topic() -> None:
    assert suite.module_names("io", ["scan"]) == ["tests.bench.io_scan"]
    assert "tests.bench.io_reads" in suite.module_names("io")
    assert all(".io_" in name for name in suite.module_names("io"))
    with pytest.raises(ValueError, match="no such topic: nothing"):
        suite.module_names("io", ["nothing"])
