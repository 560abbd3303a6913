"""What KEDA scales by, as Prometheus evaluates it: how long work waits that can go on."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support.manifests import K8S, of_kind, rendered

if TYPE_CHECKING:
    from pathlib import Path

WAITS = 'lodestone_indexer_queue_oldest_seconds{status="pending"}'
QUEUED = 'lodestone_indexer_unfinished_run_oldest_seconds{state="queued"}'
RUNNING = 'lodestone_indexer_unfinished_runs{state="running"}'
PAUSED = 'lodestone_indexer_unfinished_runs{state="paused"}'
HOLDS = "lodestone_indexer_queue_holds"

CASES = [
    ("lodestone-embed", {WAITS: 300, RUNNING: 1, HOLDS: 0}, 300),
    ("lodestone-embed", {WAITS: 300, RUNNING: 1, HOLDS: 1}, None),
    ("lodestone-embed", {WAITS: 300, RUNNING: 0, HOLDS: 0}, None),
    ("lodestone-indexer", {QUEUED: 300, PAUSED: 0, HOLDS: 0}, 300),
    ("lodestone-indexer", {QUEUED: 300, PAUSED: 0, HOLDS: 1}, None),
    ("lodestone-indexer", {QUEUED: 300, PAUSED: 1, HOLDS: 0}, None),
]


@pytest.mark.parametrize(("name", "series", "expected"), CASES)
def test_replicas_are_asked_for_by_work_that_can_go_on(
    tmp_path: Path, name: str, series: dict[str, int], expected: int | None
) -> None:
    """Red when a queue that is held, or what a cancelled run left, keeps all replicas up."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: `make test` as root installs Debian's prometheus")
    (trigger,) = of_kind(rendered(("keda",)), "ScaledObject")[name]["spec"]["triggers"]
    samples = [] if expected is None else [{"labels": "{}", "value": expected}]
    test = {
        "interval": "1m",
        "input_series": [
            {"series": each, "values": f"{value}x5"} for each, value in series.items()
        ],
        "promql_expr_test": [
            {"expr": trigger["metadata"]["query"], "eval_time": "2m", "exp_samples": samples}
        ],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"tests": [test]}), "utf-8")
    done = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "tests.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, json.dumps(series) + done.stdout + done.stderr


def test_the_version_of_keda_is_named_that_the_objects_need() -> None:
    """An older KEDA refuses a fallback for a trigger that goes by its value."""
    needs = [
        scaled["spec"]
        for scaled in of_kind(rendered(("keda",)), "ScaledObject").values()
        if "fallback" in scaled["spec"]
        and all(trigger.get("metricType") == "Value" for trigger in scaled["spec"]["triggers"])
    ]
    assert needs
    page = K8S.parent.parent / "docs" / "operations.md"
    for path in (page, K8S / "components" / "keda" / "kustomization.yaml"):
        assert "KEDA 2.18 or newer" in path.read_text("utf-8"), path.name
