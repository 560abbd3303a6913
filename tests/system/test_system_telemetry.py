"""What a run of the whole product tells: metrics, spans and log lines are those declared.

A real Prometheus scrapes it meanwhile, and every query of every dashboard and alert has data there.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.support import promql, telemetry_contract
from tests.support.promql import alert_operands
from tests.support.telemetry_contract import LINE_FIELDS, Contract
from tests.support.whole_run import SERVICES, Told, Values, has_data, tell

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def told(flask_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What one run of the product tells."""
    return tell(flask_source / "src" / "flask", tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def contract() -> Contract:
    return telemetry_contract.load()


@pytest.mark.timeout(180)
def test_what_is_exported_is_what_is_declared(told: Told, contract: Contract) -> None:
    """Planted once: `disable_created_metrics` taken out, which exports a gauge for each counter."""
    for service in SERVICES:
        declared = {
            name.removesuffix("_total"): metric
            for name, metric in contract.metrics.items()
            if service in metric.services
        }
        assert set(told.metrics[service]) == set(declared), service
        for name, family in told.metrics[service].items():
            assert family.type == declared[name].kind, name


def test_metrics_tell_what_the_first_run_and_search_did(told: Told) -> None:
    """Red with nodes of one text counted each, and with parsed nodes counted by files."""
    report, first = told.report, Values(told.first)
    files, nodes, forwards = report["files"], report["nodes"], report["forwards"]
    assert (files["failed"], nodes["failed"], files["skipped"]) == (0, 0, 1)

    assert first.of("lodestone_io_scanned_files_total") == {"": files["scanned"]}
    assert first.of("lodestone_io_skipped_files_total") == {"binary": 1}
    assert first.of("lodestone_io_scans_total") == {"succeeded": 1}
    assert first.of("lodestone_io_scan_seconds_count") == {"": 1}
    assert first.of("lodestone_io_parsed_files_total") == {"parsed": files["scanned"]}
    assert first.of("lodestone_io_parsed_nodes_total") == {"": nodes["total"]}
    assert first.of("lodestone_io_parse_workers")[""] >= 1
    assert first.of("lodestone_io_roots") == {"configured": 1}
    assert first.of("lodestone_io_read_items_total") == {"read": forwards + told.hits}
    assert first.of("lodestone_io_read_files_total")["read"] >= files["scanned"]

    batches = first.of("lodestone_indexer_stage_seconds_count")["embed"]
    assert first.of("lodestone_io_read_seconds_count") == {"": batches + 1}
    assert first.of("lodestone_embed_texts_total") == {"bulk ok": forwards, "interactive ok": 1}
    assert first.of("lodestone_embed_batch_texts_sum") == {"": forwards + 1}
    ran = first.of("lodestone_embed_batch_texts_count")
    assert ran == first.of("lodestone_embed_forward_seconds_count")
    assert first.of("lodestone_embed_tokenize_seconds_count") == {"": batches + 1}
    tokens = first.of("lodestone_embed_tokens_total")[""]
    assert forwards < tokens <= first.of("lodestone_embed_padded_tokens_total")[""]
    assert first.of("lodestone_embed_models") == {"ready": 2}
    assert first.of("lodestone_embed_model_loads_total") == {"ok": 1}
    for name in ("queued_texts", "admitted_tokens", "running_batches", "refusals_total"):
        assert first.of(f"lodestone_embed_{name}") == {}, name

    ended = {"embedded": nodes["embedded"], "reused": nodes["reused"]}
    assert first.of("lodestone_indexer_nodes_total") == ended
    assert first.of("lodestone_indexer_forwards_total") == {"": forwards}
    assert first.of("lodestone_indexer_runs_total") == {report["state"]: 1}
    assert first.of("lodestone_indexer_searches_total") == {"found": 1}
    arms = ("query_embedding", "dense", "lexical", "named")
    assert first.of("lodestone_indexer_search_seconds_count") == dict.fromkeys(arms, 1)
    seconds = first.of("lodestone_indexer_stage_seconds_sum")
    assert set(seconds) == set(report["stage_seconds"])
    for stage, spent in report["stage_seconds"].items():
        # What a commit takes until all is written cannot stand in what it writes.
        assert spent <= seconds[stage] + 0.001, stage
        assert stage == "commit" or seconds[stage] == pytest.approx(spent, abs=0.001), stage


def test_calls_are_counted_the_same_at_both_ends(told: Told) -> None:
    """Red with calls that the client counts twice, and with messages that it does not count."""
    first = Values(told.first)
    called = {"ScanTree", "ParseFiles", "ReadContents", "ReadSnippets", "Embed"}
    for what in ("started_total", "handled_total", "msg_received_total", "msg_sent_total"):
        other = {"msg_received_total": "msg_sent_total", "msg_sent_total": "msg_received_total"}
        served = first.of(f"grpc_server_{what}", "grpc_method", "grpc_code")
        asked = first.of(f"grpc_client_{other.get(what, what)}", "grpc_method", "grpc_code")
        methods = {name for name in asked if name.split()[0] in called}
        assert {name.split()[0] for name in methods} == called
        assert {name: served[name] for name in methods} == {name: asked[name] for name in methods}
    ended = first.of("grpc_server_handled_total", "grpc_method")
    assert first.of("grpc_server_handling_seconds_count", "grpc_method") == ended
    assert ended["CreateIndexRun"] == ended["WatchIndexRun"] == ended["SearchNodes"] == 1
    seconds = first.of("grpc_server_handling_seconds_sum", "grpc_method")
    assert told.report["seconds"] <= seconds["WatchIndexRun"] < told.report["seconds"] + 5


def test_a_live_workspace_is_counted(told: Told) -> None:
    """The one that the run watches from its middle to its end."""
    _needs_prometheus()  # without it, it is not waited for what is told
    counted = Values({"indexer": told.metrics["indexer"]})
    assert counted.of("lodestone_indexer_live_watches") == {"": 1}
    assert counted.of("lodestone_indexer_live_events_total")["modified"] >= 1
    runs = counted.of("lodestone_indexer_live_runs_total")
    fresh = counted.of("lodestone_indexer_freshness_seconds_count")[""]
    assert 1 <= fresh <= sum(runs.values())
    assert counted.of("lodestone_indexer_live_errors_total") == {}


def test_labels_have_declared_values_and_series_keep_their_bound(
    told: Told, contract: Contract
) -> None:
    """Planted once: an outcome spelt otherwise."""
    by_series = contract.by_series()
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for service in SERVICES:
        for family in told.metrics[service].values():
            for sample in family.samples:
                metric = by_series[sample.name]
                counts[service, metric.name] += 1
                labels = {key: value for key, value in sample.labels.items() if key != "le"}
                assert set(labels) == set(metric.labels), sample.name
                for label, value in labels.items():
                    values = metric.labels[label].values
                    assert values is None or value in values, (sample.name, label, value)
    for (_, name), count in counts.items():
        assert count <= contract.metrics[name].max_series, name


def test_spans_are_those_declared(told: Told, contract: Contract) -> None:
    """Planted once: the span of a run without its workspace, and one more attribute."""
    on_failure = {name for name, told in contract.attributes.items() if told.get("on_failure")}
    seen: dict[str, set[str]] = defaultdict(set)
    for span in told.spans:
        service, name = span.service.removeprefix("lodestone-"), span.span.name
        declared = contract.span_of(name)
        assert declared is not None, name
        assert service in declared["services"], (service, name)
        usual = {each for each in declared["attributes"] if each not in on_failure}
        assert usual <= set(span.attributes) <= set(declared["attributes"]), name
        seen[declared["name"]].add(service)

    every_run = {name for name, span in contract.spans.items() if span["every_run"]}
    assert set(seen) == every_run
    assert all(set(contract.spans[name]["services"]) == seen[name] for name in every_run)


def test_attributes_of_spans_and_processes_keep_their_bounds(
    told: Told, contract: Contract
) -> None:
    """Red with a bound of 1 for methods, and with a process's attribute that is not declared."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for span in told.spans:
        assert set(span.resource) == set(contract.resource), span.service
        process = span.resource["service.instance.id"]
        for name, value in (*span.attributes.items(), *span.resource.items()):
            values[process, name].add(value)
    declared = {**contract.attributes, **contract.resource}
    for (process, name), found in values.items():
        bound = declared[name]["bound"]
        assert isinstance(bound, str) or len(found) <= bound, (process, name, found)


def test_log_lines_are_those_declared(told: Told, contract: Contract) -> None:
    """Planted once: a field that is not declared, and a declared one left out."""
    for service in SERVICES:
        assert told.lines[service], service
        for line in told.lines[service]:
            declared = contract.events.get(line["event"])
            assert declared is not None, line
            assert line["level"] in declared["levels"], line
            assert line["service"] == service, line
            assert service in declared["services"], line
            assert set(line) - LINE_FIELDS == set(declared["fields"]), line


def test_fields_of_log_lines_keep_their_bounds(told: Told, contract: Contract) -> None:
    """Planted once: a bound of 1 where a process tells two addresses."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for service in SERVICES:
        for line in told.lines[service]:
            for name in set(line) - LINE_FIELDS:
                values[service, name].add(str(line[name]))
    for (service, name), found in values.items():
        bound = contract.fields[name]["bound"]
        assert isinstance(bound, str) or len(found) <= bound, (service, name, found)


def test_every_query_of_every_dashboard_has_data(told: Told) -> None:
    """Planted once: a query of a label's value that never is."""
    _needs_prometheus()
    empty = [query.place for query in promql.dashboard_queries() if not has_data(told, query.expr)]

    assert not empty


def test_what_alerts_and_scalers_compare_has_data(told: Told) -> None:
    _needs_prometheus()
    for query in (*promql.rule_queries(), *promql.scaler_queries()):
        for operand in alert_operands(query.expr):
            assert has_data(told, operand), (query.place, operand)


def test_prometheus_scrapes_all_and_evaluates_every_rule(told: Told) -> None:
    _needs_prometheus()
    assert told.targets == {f"lodestone-{name}": "up" for name in SERVICES}
    assert told.rule_errors == {}


def test_no_alert_of_a_page_fires_over_a_product_that_is_well(told: Told) -> None:
    _needs_prometheus()
    firing = {each["metric"]["alertname"] for each in told.answers["ALERTS"]}
    pages = {
        rule["alert"]
        for rule in promql.rules()
        if "alert" in rule and rule["labels"]["severity"] == "page"
    }
    assert not firing & pages


def _needs_prometheus() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed: `make test` as root installs Debian's package")
