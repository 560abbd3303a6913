"""Each alert fires when it should and not when it should not, as promtool sees it."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.telemetry_contract import MONITORING

if TYPE_CHECKING:
    from pathlib import Path

DOCS = MONITORING.parent.parent / "docs"
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text("utf-8"))
CASES = yaml.safe_load((MONITORING / "alert_cases.yaml").read_text("utf-8"))
ALERTS = {
    rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule
}


@pytest.fixture
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not installed: `make test` as root installs Debian's prometheus")
    return path


def _check(promtool: str, *arguments: str) -> str:
    result = subprocess.run(
        [promtool, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    return "" if result.returncode == 0 else result.stdout + result.stderr


def test_the_rules_are_well_formed(promtool: str) -> None:
    assert not _check(promtool, "check", "rules", str(MONITORING / "alerts.yaml"))


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    assert [case["alert"] for case in CASES] == list(ALERTS)
    assert all(case["fires"]["series"] and case["quiet"] for case in CASES)


@pytest.mark.slow
def test_alerts_fire_when_they_should_and_only_then(promtool: str, tmp_path: Path) -> None:
    """Red with a threshold ten times as high, and with IndexStalled without its look at holds.

    Red also with watches' drains and deadlines in the error budget, and with none of their ends;
    with one `absent` over all services, and with sums of embed's replicas where one is silent.
    """
    files = []
    for case in CASES:
        name = case["alert"]
        (tmp_path / f"{name}.rules.yaml").write_text(yaml.safe_dump(_rules_of(name)), "utf-8")
        tests = {
            "rule_files": [f"{name}.rules.yaml"],
            "evaluation_interval": "30s",
            "tests": _tests(case),
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tests), "utf-8")
        files.append(str(path))

    assert not _check(promtool, "test", "rules", *files)


def _rules_of(alert: str) -> dict[str, Any]:
    """Returns an alert with the recorded series: to evaluate all for each takes a minute."""
    groups = [
        {**group, "rules": [rule for rule in group["rules"] if rule.get("alert", alert) == alert]}
        for group in RULES["groups"]
    ]
    return {"groups": groups}


def test_alerts_say_how_urgent_they_are_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"page", "ticket"}, name
        assert rule["annotations"]["summary"].endswith("."), name
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}", name


def test_the_runbook_has_a_heading_for_each_alert_with_what_it_means_and_what_to_do() -> None:
    """Planted once: a heading taken out."""
    text = (DOCS / "runbook.md").read_text("utf-8")
    sections = dict(
        re.findall(r"^## (Lodestone\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    )

    assert list(sections) == list(ALERTS)
    for name, section in sections.items():
        for part in ("**Means:**", "**Look:**", "**Do:**"):
            assert part in section, (name, part)


def test_the_operators_rule_is_the_same() -> None:
    path = MONITORING.parent / "k8s" / "components" / "monitoring" / "prometheus-rule.yaml"
    assert yaml.safe_load(path.read_text("utf-8"))["spec"] == RULES


def _tests(case: dict[str, Any]) -> list[dict[str, Any]]:
    rule = ALERTS[case["alert"]]
    expected: list[tuple[dict[str, str], list[dict[str, Any]]]] = []
    for fires in (case["fires"], *case.get("fires_also", ())):
        labels = {**rule["labels"], **fires["labels"]}
        fired = {"exp_labels": labels, "exp_annotations": rule["annotations"]}
        expected.append((fires["series"], [fired]))
    expected += [(quiet["series"], []) for quiet in case["quiet"]]
    return [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [
                {"eval_time": case["at"], "alertname": case["alert"], "exp_alerts": alerts}
            ],
        }
        for series, alerts in expected
    ]
