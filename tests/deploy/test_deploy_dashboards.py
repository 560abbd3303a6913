"""The dashboards' JSON is what the code makes, and every query names what is declared."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from deploy.monitoring.dashboards.files import BOARDS, generated, path_of
from tests.support import promql, telemetry_contract
from tests.support.promql import VARIABLES, NamedQuery, filled, panels, rules, uses_of

if TYPE_CHECKING:
    from tests.support.telemetry_contract import Metric

_OF_PROMETHEUS = {"job", "instance"}
"""Labels that every series gets when it is scraped."""

_SERVICES = ("io", "embed", "indexer")
_CHOSEN = VARIABLES["$instance"]
_OF_ALL = {"lodestone_build_info"}
"""What counts processes is of all of them."""

_RATIO = "lodestone:grpc_server_errors:ratio_rate"
_STAGE = "lodestone_indexer_stage_seconds"
_SHOWN: dict[str, dict[str, set[str]]] = {
    "lodestone-overview": {
        "Burn, one hour": {f"{_RATIO}1h"},
        "Burn, six hours": {f"{_RATIO}6h"},
        "Rate": {"grpc_server_handled_total"},
        "Errors": {f"{_RATIO}5m"},
        "Duration": {"grpc_server_handling_seconds_bucket"},
        "Runs": set(),
    },
    "lodestone-pipeline": {
        "Oldest node that waits": {"lodestone_indexer_queue_oldest_seconds"},
        "Live workspaces": {"lodestone_indexer_freshness_seconds_bucket"},
        "Depth of the queue": {"lodestone_indexer_queue_nodes"},
        "Batches in flight by stage": {f"{_STAGE}_sum"},
        "Batches that ended by stage": {f"{_STAGE}_count"},
        "Runs": set(),
    },
    "lodestone-embed": {
        "Queue": {"lodestone_embed_queued_texts"},
        "Share of padding": {"lodestone_embed_tokens_total", "lodestone_embed_padded_tokens_total"},
        "Batches on the device": {"lodestone_embed_running_batches"},
        "Refused calls": {"lodestone_embed_refusals_total"},
    },
    "lodestone-io": {
        "Scans": {"lodestone_io_scans_total"},
        "Parsed files": {"lodestone_io_parsed_files_total"},
        "Rescans": {"lodestone_io_watch_rescans_total"},
    },
    "lodestone-database": {
        "Use of the pool": {"lodestone_indexer_pool_connections_used"},
        "Wait for a connection": {"lodestone_indexer_pool_wait_seconds_bucket"},
        "Steps that failed": {"lodestone_indexer_upkeep_steps_total"},
    },
    "lodestone-search": {
        "Searches by outcome": {"lodestone_indexer_searches_total"},
        "Time of a search": {"grpc_server_handling_seconds_bucket"},
        "Parts of a search": {"lodestone_indexer_search_seconds_bucket"},
    },
}
"""Of each board the panels that it is not without, and what each asks for."""

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


def test_instances_are_those_of_the_boards_services(
    board: dict[str, Any], series: dict[str, Metric]
) -> None:
    """Red with a metric that is not, which leaves the list of instances empty."""
    (variable,) = (each for each in board["templating"]["list"] if each["name"] == "instance")
    found = re.fullmatch(r'label_values\((\w+)\{job=~"(.+)"\}, instance\)', variable["query"])
    assert found is not None
    jobs = {service for service in _SERVICES if re.fullmatch(found[2], f"lodestone-{service}")}
    assert jobs
    assert jobs <= series[found[1]].services
    assert variable["datasource"]["uid"] == "${datasource}"


def test_what_is_chosen_counts(board: dict[str, Any], series: dict[str, Metric]) -> None:
    """Red with a query that forgets the chosen instances, and with a choice that is for nothing.

    What is recorded, or the same from every replica, is of no instance.
    """
    (variable,) = (each for each in board["templating"]["list"] if each["name"] == "instance")
    job = re.search(r'job=~"(.+)"', variable["query"])
    assert job is not None
    for query in _queries_of(board):
        for name, matchers in uses_of(query).selectors:
            metric = series.get(name)
            if metric is None or name in _OF_ALL or "same from every replica" in metric.meaning:
                continue
            if any(re.fullmatch(job[1], f"lodestone-{service}") for service in metric.services):
                assert matchers.get("instance") == _CHOSEN, (query, name)
    shown = {each["name"] for each in board["templating"]["list"] if not each.get("hide")}
    targets = json.dumps([panel["targets"] for panel in panels(board)])
    assert all(f"${name}" in targets for name in shown - {"datasource", "traces"}), shown


def test_tables_of_traces_ask_for_declared_spans(board: dict[str, Any]) -> None:
    """Red with a span or an attribute that is not declared, and without the chosen workspace."""
    declared = telemetry_contract.load().spans
    for panel in panels(board):
        if panel["type"] != "table":
            continue
        (target,) = panel["targets"]
        span = re.search(r'name = "([\w.]+)"', target["query"])
        assert span is not None
        attributes = re.findall(r"span\.([\w.]+)", target["query"])
        assert set(attributes) <= set(declared[span[1]]["attributes"])
        assert 'span.lodestone.workspace =~ "$workspace"' in target["query"]


def test_boards_show_what_they_are_for(board: dict[str, Any]) -> None:
    """Red when a panel is lost: rate, errors, duration and budget, the funnel, padding."""
    found = {
        panel["title"]: {
            name
            for target in panel["targets"]
            if "expr" in target
            for name, _ in uses_of(filled(target["expr"])).selectors
        }
        for panel in panels(board)
    }
    for title, names in _SHOWN[board["uid"]].items():
        assert title in found
        assert names <= found[title], title


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


def _queries_of(board: dict[str, Any]) -> list[str]:
    return [
        filled(target["expr"])
        for panel in panels(board)
        for target in panel["targets"]
        if "expr" in target
    ]
