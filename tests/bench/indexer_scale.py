"""Large trees: time, memory and bytes of a cold index, of an unchanged one, and of a small edit.

The size is `LODESTONE_BENCH_FILES` files of ten nodes each, and a tenth of it beside: what grows
with the tree is seen by comparing the two.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tests.bench.figures import figure, print_measured, say
from tests.bench.generate import edit_share, write_tree
from tests.bench.indexer_rig import running
from tests.bench.memory import MemoryPeak

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.indexer_rig import Rig

FILES = int(os.environ.get("LODESTONE_BENCH_FILES", "5000"))
_FUNCTIONS = 9
"""Functions of a file; with the module's docstring they make ten nodes."""

_EDITED_SHARE = 0.01
_MOST_MEMORY_GROWTH = 1.1
_MIB = 1 << 20


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns the figures of a tree and of one of a tenth of its size."""
    small = _measure_one(scratch / "small", FILES // 10)
    large = _measure_one(scratch / "large", FILES)
    growth = large["indexer_peak"] / small["indexer_peak"]
    slowdown = small["nodes_per_second"] / large["nodes_per_second"]
    return {
        "scale_nodes": figure(large["nodes"]),
        "scale_cold_nodes_per_second": figure(large["nodes_per_second"]),
        "scale_cold_slowdown_of_ten_times_the_tree": figure(slowdown, 1.5, met=slowdown <= 1.5),
        "scale_unchanged_microseconds_per_file": figure(large["unchanged"] / FILES * 1e6),
        "scale_one_percent_edit_seconds": figure(large["edited"]),
        "scale_peak_memory_mib": figure(large["peak"] / _MIB),
        "scale_indexer_memory_growth_of_ten_times_the_tree": figure(
            growth, _MOST_MEMORY_GROWTH, met=growth <= _MOST_MEMORY_GROWTH
        ),
        "scale_database_bytes_per_node": figure(large["bytes_per_node"]),
    }


def _measure_one(roots: Path, files: int) -> dict[str, float]:
    roots.mkdir(parents=True)
    tree = write_tree(roots / "tree", files=files, functions=_FUNCTIONS)
    with running(roots) as rig:
        rig.create("tree", "tree")
        with (
            MemoryPeak(lambda: rig.pids) as all_of_it,
            MemoryPeak(lambda: [rig.indexer.pid]) as own,
        ):
            cold, row = rig.index("tree")
        say(
            f"cold: {files} files, {row['nodes_total']} nodes, {cold:.1f} s, {row['stage_seconds']}"
        )
        unchanged, again = rig.index("tree")
        assert again["forwards"] == 0
        edited_files = edit_share(tree, files=files, share=_EDITED_SHARE)
        edited, row = rig.index("tree")
        assert row["forwards"] == edited_files, (row["forwards"], edited_files)
        say(f"unchanged {unchanged:.2f} s, {edited_files} files edited {edited:.2f} s")
        return {
            "nodes": row["nodes_total"],
            "nodes_per_second": row["nodes_total"] / cold,
            "unchanged": unchanged,
            "edited": edited,
            "peak": all_of_it.peak_bytes,
            "indexer_peak": own.peak_bytes,
            "bytes_per_node": _database_bytes(rig) / row["nodes_total"],
        }


def _database_bytes(rig: Rig) -> int:
    return int(rig.rows("SELECT pg_database_size(current_database()) AS bytes")[0]["bytes"])


if __name__ == "__main__":
    print_measured(measure)
