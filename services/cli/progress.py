"""Draws the progress of a run: a bar a stage on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.cli.terminal import note

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, Task, TaskID
    from rich.text import Text

    from lodestone.indexer.v1.index_run_service_pb2 import IndexRun

_QUIET_SECONDS = 0.4
_LINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class StageProgress:
    """How far a stage is; `total` is None while nobody knows."""

    name: str
    done: int
    total: int | None
    unit: str


def stages_of(run: IndexRun) -> tuple[StageProgress, ...]:
    """Returns the stages that a person watches, in order."""
    counts = run.progress
    to_embed = max(counts.nodes_total - counts.nodes_reused, 0)
    return (
        StageProgress(
            "scan",
            counts.files_scanned,
            counts.files_scanned if counts.scan_finished else None,
            "files",
        ),
        StageProgress(
            "parse",
            counts.files_parsed,
            counts.files_to_parse if counts.scan_finished else None,
            "files",
        ),
        StageProgress(
            "embed",
            counts.nodes_embedded + counts.nodes_failed,
            to_embed if counts.nodes_total_final or to_embed else None,
            "nodes",
        ),
    )


class ProgressDisplay:
    """Shows the newest state; runs that are over at once show nothing."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._told_at = self._begin
        self._bars: _Bars | None = None
        self._terminal = sys.stderr.isatty()

    def update(self, run: IndexRun) -> None:
        """Shows a state."""
        now = time.monotonic()
        if now - self._begin < _QUIET_SECONDS:
            return
        if self._terminal:
            self._bars = self._bars or _Bars()
            self._bars.update(stages_of(run))
        elif now - self._told_at > _LINE_SECONDS:
            self._told_at = now
            note(progress_line(run))

    def close(self) -> None:
        """Removes the bars."""
        if self._bars is not None:
            self._bars.close()
            self._bars = None


def progress_line(run: IndexRun) -> str:
    """Returns the state in one plain line."""
    parts = [
        f"{stage.name} {stage.done:,}"
        + (f"/{stage.total:,}" if stage.total is not None else "")
        + f" {stage.unit}"
        for stage in stages_of(run)
    ]
    return ", ".join(parts)


class _Bars:
    """One rich bar a stage; rich is loaded when the first is drawn."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._progress: RichProgress = RichProgress(
            TextColumn("{task.description:<6}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _rate_column(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def update(self, stages: tuple[StageProgress, ...]) -> None:
        for stage in stages:
            if stage.name not in self._tasks:
                self._tasks[stage.name] = self._progress.add_task(
                    stage.name, total=stage.total, unit=stage.unit
                )
            self._progress.update(self._tasks[stage.name], completed=stage.done, total=stage.total)

    def close(self) -> None:
        self._progress.stop()


def _rate_column() -> ProgressColumn:
    from rich.progress import ProgressColumn as Column
    from rich.text import Text

    class RateColumn(Column):
        """Items a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            unit = task.fields.get("unit", "")
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s")

    return RateColumn()
