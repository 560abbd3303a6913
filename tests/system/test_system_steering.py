"""Runs and the queue, steered by the command over real processes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.runtime.exits import ExitCode
from tests.support.stack import finish

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Finished, Lodestone


def test_a_run_is_paused_over_a_restart_of_everything_and_goes_on(
    fresh_product: Lodestone, large_tree: Path
) -> None:
    """Paused in its middle, it is paused after `down` and `up`, and resumed embeds the rest."""
    assert fresh_product.run("up").code == 0
    indexing = fresh_product.start("index", str(large_tree), "--json")
    run = _until(fresh_product, lambda seen: seen["forwards"] > 0)

    asked = fresh_product.run("pause", _short(run), "--json")
    ended = finish(indexing)
    paused = _run(fresh_product, run)
    assert fresh_product.run("down").code == 0
    assert fresh_product.run("up").code == 0
    after = _run(fresh_product, run)
    resumed = fresh_product.run("resume", _short(run), "--json")
    done = _until(fresh_product, lambda seen: seen["state"] == "succeeded")
    report = fresh_product.run("report", _short(run), "--json")
    trace = fresh_product.run("trace", _short(run), "--json")
    drawn = fresh_product.run("trace", _short(run))

    assert asked.code == resumed.code == report.code == 0, asked.stderr + resumed.stderr
    assert trace.json["trace_id"] == done["trace_id"]
    _check_trace_of_two_owners(trace, drawn)
    assert "lodestone resume" in ended.stderr
    assert paused["state"] == "paused"
    assert after == paused
    assert 0 < paused["forwards"] < done["forwards"]
    assert done["nodes"]["embedded"] + done["nodes"]["reused"] == done["nodes"]["total"]
    assert set(report.json["stages"]) >= {"scan", "parse", "embed", "commit"}
    again = fresh_product.index(large_tree)
    assert (again["forwards"], again["nodes"]["total"]) == (0, done["nodes"]["total"])


def test_the_queue_is_held_and_some_files_are_indexed_alone(
    product: Lodestone, flask: Path
) -> None:
    product.index(flask)
    (flask / "views.py").write_text("def looked_at():\n    return 1\n")
    (flask / "cli.py").write_text("def left_alone():\n    return 2\n")
    workspace = product.run("runs", "--json", "--limit", "1").json[0]["workspace"]

    assert product.run("queue", "pause", "--workspace", workspace).code == 0
    held = product.run("queue", "status", "--workspace", workspace, "--json").json
    assert product.run("queue", "resume", "--workspace", workspace).code == 0
    scoped = product.index(flask, "--only", "views.py")
    drained = product.run("queue", "drain", "--workspace", workspace, "--json")
    failed = product.run("queue", "failed", "--workspace", workspace, "--json")
    nothing = product.run("queue", "retry-failed", "--workspace", workspace, "--json")

    assert held["paused"]
    assert {entry["status"] for entry in held["nodes"]} == {"embedded"}
    assert (scoped["files"]["scanned"], scoped["forwards"]) == (1, 1)
    assert drained.json == {"drained": True, "left": 0}
    assert failed.json == []
    assert nothing.json == {"count": 0, "run": "", "runs": []}
    assert [hit["path"] for hit in product.search("left_alone", flask, 1)] != ["cli.py"]


def test_an_indexer_elsewhere_is_steered_and_nothing_is_started(
    product: Lodestone, flask: Path, tmp_path: Path
) -> None:
    """Red when the services of this machine are asked, and started for it, as is usual."""
    product.index(flask)
    address = product.state.processes["indexer"].address
    here = replace(product, root=tmp_path / "none")

    runs = here.run("runs", "--indexer", address, "--json")
    workspace = runs.json[0]["workspace"]
    held = here.run("queue", "pause", "--workspace", workspace, "--indexer", address)
    status = product.run("queue", "status", "--workspace", workspace, "--json")
    freed = here.run("queue", "resume", "--workspace", workspace, "--indexer", address)
    found = here.run("search", "view", "--workspace", workspace, "--indexer", address, "--json")
    by_path = here.run("search", "view", "--path", str(flask), "--indexer", address)
    nobody = here.run("queue", "resume", "--indexer", f"unix:{tmp_path}/nobody")

    assert runs.json == product.run("runs", "--json").json
    assert status.json["paused"]
    assert (held.code, freed.code, found.code) == (0, 0, 0)
    assert found.json
    assert (by_path.code, nobody.code) == (ExitCode.USAGE, ExitCode.UNAVAILABLE)
    assert "lodestone up" not in nobody.stderr
    assert not here.root.exists()


def test_a_check_tells_what_disagrees_and_a_repair_mends_it(
    product: Lodestone, flask: Path
) -> None:
    product.index(flask)
    workspace = product.run("runs", "--json", "--limit", "1").json[0]["workspace"]
    sound = product.run("check", "--workspace", workspace, "--sample", "0.5", "--json")
    (flask / "views.py").write_text("def looked_at():\n    return 'again'\n")

    found = product.run("check", "--workspace", workspace, "--json")
    mended = product.run("check", "--workspace", workspace, "--repair", "--json")
    _until(product, lambda seen: seen["mode"] == "repair" and seen["state"] == "succeeded")
    again = product.run("check", "--workspace", workspace, "--sample", "0.5", "--json")

    assert (sound.code, found.code, mended.code, again.code) == (0, 1, 0, 0), sound.stdout
    assert sound.json["checked"] > 0
    assert [(row["kind"], row["path"]) for row in found.json["disagreements"]] == [
        ("file_changed", "views.py")
    ]
    assert again.json["disagreements"] == []


def _until(product: Lodestone, condition: Any) -> dict[str, Any]:
    """Returns the newest run once it is as told."""
    for _ in range(200):
        runs: list[dict[str, Any]] = product.run("runs", "--json", "--limit", "1").json
        if runs and condition(runs[0]):
            return runs[0]
    raise AssertionError(f"the run did not come to it: {runs}")


def _run(product: Lodestone, run: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = product.run("run", run["run"], "--json").json
    return found


def _short(run: dict[str, Any]) -> str:
    return str(run["run"]).rpartition("/")[2][:8]


def _check_trace_of_two_owners(trace: Finished, drawn: Finished) -> None:
    """Holds one trace to what both owners of a run did, and to the time between them.

    Planted once: owners who begin traces of their own, not that of the call.
    """
    assert trace.code == drawn.code == 0, trace.stderr + drawn.stderr
    told = trace.json
    assert (told["run"]["state"], told["owners"]) == ("succeeded", 2)
    assert told["missing_spans"] == 0
    assert told["path"][0]["name"] == "lodestone.cli.index"
    rows = {row["name"]: row for row in told["path"] if row["depth"] <= 1}
    assert rows["lodestone.indexer.run"]["spans"] == 2
    assert rows["(no owner)"]["seconds"] > 0
    assert sum(row["own_seconds"] for row in told["path"]) == pytest.approx(
        told["seconds"], abs=1e-3
    )
    for part in ("Run succeeded", "2 owners", told["trace_id"], "(no owner)", "commit"):
        assert part in drawn.stdout
