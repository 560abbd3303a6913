"""Whatever is killed in the middle of a run, the next `index` ends as one from scratch."""

from __future__ import annotations

import signal
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from services.cli.indexer import Indexer
from services.runtime.exits import ExitCode, StartError
from tests.support.index_rows import index_rows
from tests.support.stack import Lodestone, finish, wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

_ENOUGH_NODES = 60


def _start_index(product: Lodestone, tree: Path) -> subprocess.Popen[str]:
    """Starts `index` and returns in the middle of its run."""
    assert product.run("up").code == 0
    process = product.start("index", str(tree), "--json")
    with closing(Indexer(product.state.processes["indexer"].address)) as indexer:

        def in_the_middle() -> bool:
            try:
                runs = indexer.list_runs("workspaces/-", 1)
            except StartError:
                return False
            assert process.poll() is None, finish(process)
            return bool(runs) and runs[0].progress.nodes_embedded >= _ENOUGH_NODES

        wait_until(in_the_middle, 60, "some nodes are embedded")
    return process


@pytest.mark.parametrize("name", ["io", "embed", "indexer", "postgres"])
def test_a_killed_process_loses_nothing_and_does_nothing_twice(
    fresh_product: Lodestone, product: Lodestone, large_tree: Path, name: str
) -> None:
    process = _start_index(fresh_product, large_tree)
    fresh_product.kill(name)
    cut_off = finish(process)

    again = fresh_product.index(large_tree)

    assert cut_off.code == ExitCode.UNAVAILABLE, cut_off
    assert "Run the same command again" in cut_off.stderr
    assert again["state"] == "succeeded"
    scratch = product.index(large_tree, "--workspace", f"scratch-{name}")
    mine = index_rows(fresh_product, again["workspace"])
    assert mine == index_rows(product, scratch["workspace"])
    assert len(mine.vectors) == again["nodes"]["total"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_cancelled_and_the_next_completes_it(
    fresh_product: Lodestone, product: Lodestone, large_tree: Path, number: signal.Signals
) -> None:
    process = _start_index(fresh_product, large_tree)
    process.send_signal(number)
    cancelled = finish(process)

    again = fresh_product.index(large_tree)
    trace = fresh_product.run("trace", cancelled.json["run"], "--json")

    assert cancelled.code == ExitCode.INTERRUPTED, cancelled
    assert cancelled.json["state"] == "cancelled"
    assert trace.json["run"]["state"] == "cancelled", trace.stderr
    assert trace.json["path"][0]["failed"] == 1, "the command ended by the signal"
    assert "lodestone.indexer.run" in {row["name"] for row in trace.json["path"]}
    assert again["forwards"] < again["nodes"]["total"]
    scratch = product.index(large_tree, "--workspace", f"scratch-{number.name.lower()}")
    assert index_rows(fresh_product, again["workspace"]) == index_rows(
        product, scratch["workspace"]
    )


def test_files_that_vanish_during_the_run_harm_nothing(
    fresh_product: Lodestone, product: Lodestone, large_tree: Path
) -> None:
    process = _start_index(fresh_product, large_tree)
    for path in sorted((large_tree / "src").rglob("*.py"))[::2]:
        path.unlink()
    finished = finish(process)

    again = fresh_product.index(large_tree)

    assert finished.code == ExitCode.OK, finished
    scratch = product.index(large_tree, "--workspace", "scratch-vanished")
    assert index_rows(fresh_product, again["workspace"]) == index_rows(
        product, scratch["workspace"]
    )


def test_a_second_index_joins_the_first(fresh_product: Lodestone, large_tree: Path) -> None:
    first = _start_index(fresh_product, large_tree)

    second = fresh_product.run("index", str(large_tree), "--json")

    assert finish(first).code == ExitCode.OK
    assert second.code == ExitCode.OK, second
    assert "following it to its end" in second.stderr
    assert second.json["forwards"] == 0


def test_down_in_the_middle_of_a_run_gives_the_work_back(
    fresh_product: Lodestone, large_tree: Path
) -> None:
    process = _start_index(fresh_product, large_tree)
    down = fresh_product.run("down")
    cut_off = finish(process)

    again = fresh_product.index(large_tree)

    assert down.code == ExitCode.OK
    assert cut_off.code == ExitCode.UNAVAILABLE, cut_off
    assert again["state"] == "succeeded"
    assert again["nodes"]["failed"] == 0
