"""A real Prometheus that scrapes a test's processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.telemetry_contract import MONITORING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_READY_SECONDS = 20.0
_SCRAPE = "1s"


@dataclass(frozen=True, slots=True)
class Prometheus:
    """One that runs."""

    address: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Returns the result of a query, as of now."""
        found = self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
        assert found["status"] == "success", found
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def rule_errors(self) -> dict[str, str]:
        """Returns the last error of each rule that had one."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert rules
        return {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")}

    def targets(self) -> dict[str, str]:
        """Returns the health of each scraped job."""
        found = self._get("/api/v1/targets")["data"]["activeTargets"]
        return {target["labels"]["job"]: target["health"] for target in found}

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()) from None


@contextmanager
def prometheus(folder: Path, address: str, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Runs Prometheus with the alerts of the product over the named jobs' addresses."""
    binary = shutil.which("prometheus")
    assert binary is not None
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text("utf-8"))
    for group in rules["groups"]:
        group["interval"] = _SCRAPE  # a test has no minutes
    (folder / "alerts.yaml").write_text(yaml.safe_dump(rules), "utf-8")
    configuration = {
        "global": {"scrape_interval": _SCRAPE, "evaluation_interval": _SCRAPE},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target]}]}
            for job, target in targets.items()
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration), "utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yaml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
                "--web.enable-lifecycle",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait_ready(address, process, folder / "log")
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.05)
