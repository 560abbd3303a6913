"""The dashboards' JSON is what the code makes, and every query names what is declared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from deploy.monitoring.dashboards.files import BOARDS, generated, path_of
from tests.support import promql, telemetry_contract
from tests.support.promql import NamedQuery, panels, rules, uses_of

if TYPE_CHECKING:
    from tests.support.telemetry_contract import Metric

_OF_PROMETHEUS = {"job", "instance"}
"""Labels that every series gets when it is scraped."""

_QUERIES = [
    *promql.dashboard_queries(),
    *promql.rule_queries(),
    *promql.scaler_queries(),
]


@pytest.fixture(scope="module")
def series() -> dict[str, Metric]:
    return telemetry_contract.load().by_series()


@pytest.fixture(params=BOARDS, ids=lambda board: board.uid)
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path_of(request.param).read_text("utf-8"))
    return loaded


def test_generated_files_are_what_the_code_makes() -> None:
    """Planted once: a title changed in the JSON."""
    stale = [path.name for path, text in generated().items() if path.read_text("utf-8") != text]

    assert not stale, "run `make dashboards`"


def test_panels_say_what_they_show_and_in_which_unit(board: dict[str, Any]) -> None:
    found = list(panels(board))
    assert len(found) >= 4
    for panel in found:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        if panel["type"] != "table":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
            assert panel["fieldConfig"]["defaults"]["links"], panel["title"]


def test_boards_have_variables_and_links_to_traces(board: dict[str, Any]) -> None:
    names = [each["name"] for each in board["templating"]["list"]]
    assert names == ["datasource", "traces", "workspace", "instance"]
    assert {"Lodestone", "Traces"} == {link["title"] for link in board["links"]}
    assert board["description"]


def test_panels_of_a_board_do_not_overlap(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in [*board["panels"], *panels(board)]]
    cells = [
        (x, y)
        for place in {json.dumps(place, sort_keys=True) for place in places}
        for position in [json.loads(place)]
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))


@pytest.mark.parametrize("query", _QUERIES, ids=lambda query: query.place)
def test_queries_name_declared_metrics_and_labels(
    query: NamedQuery, series: dict[str, Metric]
) -> None:
    """Planted once: a metric misspelt, a label that it has not, a value that it never has."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = _OF_PROMETHEUS | {"le"}
    uses = uses_of(query.expr)
    assert uses.selectors
    for name, matchers in uses.selectors:
        if name in recorded or name == "up":
            assert set(matchers) <= _OF_PROMETHEUS
            continue
        metric = series.get(name)
        assert metric is not None, name
        known |= set(metric.labels)
        own = {"le"} if name.endswith("_bucket") else set()
        assert set(matchers) <= set(metric.labels) | _OF_PROMETHEUS | own, name
        for label, value in matchers.items():
            declared = metric.labels.get(label)
            if declared is not None and declared.values is not None:
                assert set(value.split("|")) <= declared.values, (name, label, value)
    assert uses.labels <= known
