"""The files that are made of the dashboards and alerts, and what is to stand in them."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.monitoring.dashboards.database import DATABASE
from deploy.monitoring.dashboards.embed import EMBED
from deploy.monitoring.dashboards.io import IO
from deploy.monitoring.dashboards.layout import Board, build
from deploy.monitoring.dashboards.overview import OVERVIEW
from deploy.monitoring.dashboards.pipeline import PIPELINE
from deploy.monitoring.dashboards.search import SEARCH

MONITORING = Path(__file__).parent.parent
BOARDS: tuple[Board, ...] = (OVERVIEW, PIPELINE, EMBED, IO, DATABASE, SEARCH)
_RULE_HEAD = """\
# Written by `make dashboards` from deploy/monitoring/alerts.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: lodestone
spec:
"""
_KUSTOMIZATION_HEAD = """\
# Written by `make dashboards`. ConfigMaps, for a Grafana whose sidecar looks for the label.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
generatorOptions:
  disableNameSuffixHash: true
  labels: {grafana_dashboard: "1"}
configMapGenerator:
"""


def generated() -> dict[Path, str]:
    """Returns each file with its content."""
    files = {path_of(board): _json(board) for board in BOARDS}
    alerts = (MONITORING / "alerts.yaml").read_text("utf-8")
    rule = MONITORING.parent / "k8s" / "components" / "monitoring" / "prometheus-rule.yaml"
    body = [line for line in alerts.splitlines() if not line.startswith("#")]
    files[rule] = _RULE_HEAD + "".join(f"  {line}\n" for line in body)
    files[MONITORING / "kustomization.yaml"] = _KUSTOMIZATION_HEAD + "".join(
        f"  - {{name: {board.uid}, files: [grafana/{path_of(board).name}]}}\n" for board in BOARDS
    )
    return files


def path_of(board: Board) -> Path:
    """Returns where a dashboard's JSON lies."""
    return MONITORING / "grafana" / f"{board.uid}.json"


def _json(board: Board) -> str:
    return json.dumps(build(board).build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
