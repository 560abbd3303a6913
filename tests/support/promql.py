"""Queries of dashboards, alerts and scalers: all of them, and what metrics and labels they name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import promql_parser
import yaml

from tests.support.manifests import of_kind, rendered
from tests.support.telemetry_contract import MONITORING

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}
"""What stands for Grafana's variables."""


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A query and where it stands."""

    place: str
    expr: str


@dataclass
class Uses:
    """Metrics that a query names, each with its matchers, and labels that it groups by."""

    selectors: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)


def dashboard_queries() -> Iterator[NamedQuery]:
    """Yields the queries of Prometheus of every panel, with values for variables."""
    for path in sorted((MONITORING / "grafana").glob("*.json")):
        for panel in panels(json.loads(path.read_text("utf-8"))):
            for target in panel.get("targets", ()):
                if "expr" in target:
                    place = f"{path.stem}: {panel['title']}"
                    yield NamedQuery(place, filled(target["expr"]))


def rules() -> Iterator[dict[str, Any]]:
    """Yields every rule of the alerts' file, recorded ones included."""
    text = yaml.safe_load((MONITORING / "alerts.yaml").read_text("utf-8"))
    for group in text["groups"]:
        yield from group["rules"]


def rule_queries() -> Iterator[NamedQuery]:
    """Yields the queries of alerts and of recorded rules."""
    for rule in rules():
        yield NamedQuery(rule.get("alert") or rule["record"], rule["expr"])


def scaler_queries() -> Iterator[NamedQuery]:
    """Yields the queries by which KEDA scales."""
    for name, scaled in of_kind(rendered(("keda",)), "ScaledObject").items():
        for trigger in scaled["spec"]["triggers"]:
            yield NamedQuery(f"keda: {name}", trigger["metadata"]["query"])


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the panels of a dashboard, those of its rows included."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def uses_of(expr: str) -> Uses:
    """Parses a query. Raises ValueError when it is none."""
    uses = Uses()

    def visit(node: Any) -> bool:
        kind = type(node).__name__
        if kind == "VectorSelector":
            matchers = {each.name: each.value for each in node.matchers.matchers}
            uses.selectors.append((node.name, matchers))
        modifier = getattr(node, "modifier", None)
        if kind == "AggregateExpr" and modifier is not None:
            uses.labels |= set(modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(expr), visit)
    return uses


def alert_operands(expr: str) -> list[str]:
    """Returns the vectors that an alert compares or combines: each is to have data in a real run.

    A comparison itself has none as long as all is well, nor has what is absent.
    """
    found: list[str] = []

    def visit(node: Any) -> None:
        kind = type(node).__name__
        if kind == "BinaryExpr" and str(node.op) in _COMBINING:
            visit(node.lhs)
            visit(node.rhs)
        elif kind == "ParenExpr":
            visit(node.expr)
        elif kind == "Call" and node.func.name == "absent":
            for argument in node.args:
                visit(argument)
        elif kind != "NumberLiteral" and not _is_number(node):
            found.append(node.prettify())

    visit(promql_parser.parse(expr))
    return found


_COMBINING = {"and", "unless", "or", ">", "<", "==", ">=", "<=", "!="}


def _is_number(node: Any) -> bool:
    return not uses_of(node.prettify()).selectors


def filled(expr: str) -> str:
    """Returns a panel's query with values for Grafana's variables."""
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    assert not re.search(r"\$\w", expr), expr
    return expr
