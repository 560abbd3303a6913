"""What a run of the whole product tells: metrics, spans and log lines are those declared.

A real Prometheus scrapes it meanwhile, and every query of every dashboard and alert has data there.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lodestone.embed.v1 import embed_service_pb2, embed_service_pb2_grpc
from lodestone.indexer.v1 import search_service_pb2, search_service_pb2_grpc
from lodestone.io.v1 import tree_pb2, watch_service_pb2, watch_service_pb2_grpc
from tests.support import promql, telemetry_contract
from tests.support.collector import Received, collecting
from tests.support.prometheus import Prometheus, prometheus
from tests.support.promql import alert_operands
from tests.support.stack import finish, lodestone, wait_until
from tests.support.telemetry_contract import LINE_FIELDS, Contract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.stack import Lodestone

SERVICES = ("io", "embed", "indexer")
_SECOND_MODEL = "words"


@dataclass
class Told:
    """What one run of the product told."""

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By service: families by name."""
    spans: list[Received] = field(default_factory=list)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What Prometheus answered, by query."""
    targets: dict[str, str] = field(default_factory=dict)
    rule_errors: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def told(flask_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Runs the product once: runs, a live tree, searches, two models; all scraped and traced."""
    told = Told()
    tree = tmp_path_factory.mktemp("tree") / "flask"
    shutil.copytree(flask_source / "src" / "flask", tree)
    live = tmp_path_factory.mktemp("live")
    ports = {name: _free_port() for name in (*SERVICES, "prometheus")}
    listen = {f"{name.upper()}_METRICS_LISTEN": f"127.0.0.1:{ports[name]}" for name in SERVICES}
    with ExitStack() as opened:
        collector, endpoint = opened.enter_context(collecting())
        settings = {"EMBED_MODEL": "hashing", "OTLP_ENDPOINT": endpoint, "LOG_FORMAT": "json"}
        settings["EMBED_EXTRA_MODELS"] = f"{_SECOND_MODEL}=hashing:128"
        settings["INDEXER_QUEUE_LOOK_SECONDS"] = "0.5"
        for product in lodestone(**settings, **listen):
            assert product.run("up").code == 0
            if shutil.which("prometheus"):
                jobs = {f"lodestone-{name}": f"127.0.0.1:{ports[name]}" for name in SERVICES}
                scraping = opened.enter_context(
                    prometheus(
                        tmp_path_factory.mktemp("prometheus"),
                        f"127.0.0.1:{ports['prometheus']}",
                        jobs,
                    )
                )
                wait_until(partial(_all_up, scraping), 20, "all targets are scraped")
                _work(product, tree, live)
                _ask(scraping, told, partial(_work_on, product, tree, live))
            else:
                _work(product, tree, live)
            told.metrics = {name: _scrape(ports[name]) for name in SERVICES}
            assert product.run("down").code == 0
            told.lines = {name: _lines(product, name) for name in SERVICES}
    told.spans = list(collector.spans.values())
    return told


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
    empty = [query.place for query in promql.dashboard_queries() if not _has_data(told, query.expr)]

    assert not empty


def test_what_alerts_and_scalers_compare_has_data(told: Told) -> None:
    _needs_prometheus()
    for query in (*promql.rule_queries(), *promql.scaler_queries()):
        for operand in alert_operands(query.expr):
            assert _has_data(told, operand), (query.place, operand)


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


def _has_data(told: Told, expr: str) -> bool:
    """Whether a query has a number for an answer."""
    return any(each["value"][1] != "NaN" for each in told.answers.get(expr, []))


def _work(product: Lodestone, tree: Path, live: Path) -> None:
    """Indexes, changes, indexes again, searches, and watches until the deadline."""
    (tree / "data.bin").write_bytes(bytes(range(256)))
    product.index(tree)
    assert product.search("where is a request dispatched", tree)
    _let_live(product, live)
    _change(product, tree, live)
    with grpc.insecure_channel(product.state.processes["io"].address) as channel:
        watch = watch_service_pb2_grpc.WatchServiceStub(channel)
        where = tree_pb2.Tree(root="roots/local", directory=str(tree)[1:])
        with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
            list(watch.WatchTree(watch_service_pb2.WatchTreeRequest(tree=where), timeout=0.5))


def _let_live(product: Lodestone, live: Path) -> None:
    """Makes a folder a live workspace, which the services watch from then on."""
    (live / "first.py").write_text("def first():\n    return 1\n", "utf-8")
    watch = product.start("watch", str(live), "--keep")

    def is_watched() -> bool:
        shown = product.run("status", "--json").json["workspaces"]
        states = [(each["watch"] or {}).get("state") for each in shown if each["live"]]
        return states == ["watching"]

    wait_until(is_watched, 30, "the live workspace is watched")
    watch.send_signal(signal.SIGINT)
    assert finish(watch).code == 0


def _change(product: Lodestone, tree: Path, live: Path) -> None:
    """Changes a file to what it never held, indexes it and searches for it; the other is live."""
    name = f"changed_{time.monotonic_ns()}"
    for path in (tree / "app.py", live / "first.py"):
        path.write_text(f"def {name}():\n    return 1\n", "utf-8")
    _ask_two_models(product.state.processes["embed"].address)
    product.index(tree)
    assert product.search(name, tree)


def _work_on(product: Lodestone, tree: Path, live: Path) -> None:
    """Changes the trees, and has the indexer miss the other services once."""
    _change(product, tree, live)
    (workspace,) = (
        each["workspace"]
        for each in product.run("status", "--json").json["workspaces"]
        if each["path"] == str(tree)
    )
    for name in ("io", "embed"):
        product.kill(name)
    with grpc.insecure_channel(product.state.processes["indexer"].address) as channel:
        search = search_service_pb2_grpc.SearchServiceStub(channel)
        request = search_service_pb2.SearchNodesRequest(
            parent=f"workspaces/{workspace}", query="changed", verify=True
        )
        with suppress(grpc.RpcError):  # words alone may do, and may not
            search.SearchNodes(request, timeout=10)
    assert product.run("up").code == 0


def _ask_two_models(address: str) -> None:
    """Has two models work at the same time, so that one waits for the other's turn."""
    texts = [f"{number} " * 500 for number in range(128)]

    def embed(model: str) -> None:
        stub = embed_service_pb2_grpc.EmbedServiceStub(channel)
        request = embed_service_pb2.EmbedRequest(
            model=f"models/{model}",
            options=embed_service_pb2.EmbedOptions(purpose=embed_service_pb2.PURPOSE_DOCUMENT),
            texts=texts,
        )
        for _ in range(5):
            stub.Embed(request, timeout=20)

    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(2) as threads:
        list(threads.map(embed, ("hashing", _SECOND_MODEL)))


def _ask(server: Prometheus, told: Told, again: Callable[[], object]) -> None:
    """Asks every query until each has data, with more work meanwhile, or time is over.

    What a counter held when it was first scraped is no growth.
    """
    queries = {query.expr for query in promql.dashboard_queries()}
    for query in (*promql.rule_queries(), *promql.scaler_queries()):
        queries |= set(alert_operands(query.expr))

    def asked() -> bool:
        again()
        told.answers.update(
            {expr: server.query(expr) for expr in queries if not _has_data(told, expr)}
        )
        return all(_has_data(told, expr) for expr in queries)

    with suppress(AssertionError):  # the tests say which has none
        wait_until(asked, 40, "every query has data")
    with suppress(AssertionError):  # the last work ended with a restart
        wait_until(partial(_all_up, server), 20, "all targets are scraped again")
    told.answers["ALERTS"] = server.query('ALERTS{alertstate="firing"}')
    told.targets = server.targets()
    told.rule_errors = server.rule_errors()


def _all_up(server: Prometheus) -> bool:
    targets = server.targets()
    return len(targets) == len(SERVICES) and set(targets.values()) == {"up"}


def _scrape(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def _lines(product: Lodestone, name: str) -> list[dict[str, Any]]:
    """Returns a service's log. Red when a line is no JSON: a text on standard error."""
    return [json.loads(line) for line in product.folder.log(name).read_text("utf-8").splitlines()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
