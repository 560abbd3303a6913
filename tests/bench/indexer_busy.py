"""The share of a cold run in which the model works: the rest is not hidden behind it.

Real code and the real model. The spans of the services tell when a forward ran: the share is the
time in which at least one did, of the time from the run's beginning to its end.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.figures import figure, print_measured, say
from tests.bench.indexer_rig import running
from tests.support.collector import collecting

if TYPE_CHECKING:
    from collections.abc import Iterable

_TREE = Path("build/corpora/flask")
_NAME = "busy"
_GOAL = 0.95


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the share, and the seconds of the run."""
    shutil.copytree(_TREE, scratch / _NAME)
    with collecting() as (collector, endpoint):
        with running(scratch, model="minilm", otlp_endpoint=endpoint) as rig:
            rig.create(_NAME, _NAME)
            seconds, row = rig.index(_NAME)
            for member in (rig.indexer, rig.embed):
                member.terminate()  # sends what is left
        (run,) = collector.named("lodestone-indexer", "lodestone.indexer.run")
        forwards = collector.named("lodestone-embed", "lodestone.embed.forward")
    begin, end = run.span.start_time_unix_nano, run.span.end_time_unix_nano
    within = [
        (max(begin, item.span.start_time_unix_nano), min(end, item.span.end_time_unix_nano))
        for item in forwards
    ]
    share = covered(within) / (end - begin)
    say(f"busy: {share:.3f} of {seconds:.1f} s, {row['nodes_embedded']} nodes")
    return {
        "model_busy_share_cold": figure(share, _GOAL, met=share >= _GOAL),
        "model_busy_seconds_cold": figure(seconds),
        "model_busy_nodes": figure(row["nodes_embedded"]),
    }


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Returns how much time at least one of some spans takes."""
    total = last = 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, last))
        last = max(last, end)
    return total


if __name__ == "__main__":
    print_measured(measure)
