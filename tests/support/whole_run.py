"""One run of the whole product, of which all that it tells is kept: for tests of telemetry."""

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
from tests.support import promql
from tests.support.collector import collecting
from tests.support.prometheus import prometheus
from tests.support.promql import alert_operands
from tests.support.stack import finish, lodestone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.support.collector import Received
    from tests.support.prometheus import Prometheus
    from tests.support.stack import Lodestone

SERVICES = ("io", "embed", "indexer")
_SECOND_MODEL = "words"


@dataclass
class Told:
    """What one run of the product told."""

    report: dict[str, Any] = field(default_factory=dict)
    """Of the first run."""
    hits: int = 0
    """Of the search after it."""
    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metrics as below, after the first run and one search."""
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By service: families by name."""
    spans: list[Received] = field(default_factory=list)
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What Prometheus answered, by query."""
    targets: dict[str, str] = field(default_factory=dict)
    rule_errors: dict[str, str] = field(default_factory=dict)


def tell(source: Path, make_folder: Callable[[str], Path]) -> Told:
    """Runs the product once: runs, a live tree, searches, two models; all scraped and traced."""
    told = Told()
    tree = make_folder("tree") / "flask"
    shutil.copytree(source, tree)
    live = make_folder("live")
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
                address = f"127.0.0.1:{ports['prometheus']}"
                scraping = opened.enter_context(
                    prometheus(make_folder("prometheus"), address, jobs)
                )
                wait_until(partial(_all_up, scraping), 20, "all targets are scraped")
                _work_first(product, tree, ports, told)
                _work(product, tree, live)
                _ask(scraping, told, partial(_work_on, product, tree, live))
            else:
                _work_first(product, tree, ports, told)
                _work(product, tree, live)
            told.metrics = {name: _scrape(ports[name]) for name in SERVICES}
            assert product.run("down").code == 0
            told.lines = {name: _lines(product, name) for name in SERVICES}
    told.spans = list(collector.spans.values())
    return told


@dataclass(frozen=True, slots=True)
class Values:
    """The values of metrics, of all services that have one."""

    metrics: Mapping[str, Mapping[str, Any]]

    def of(self, series: str, *labels: str) -> dict[str, float]:
        """Returns what is not zero, by the values of the named labels, or of all; others add up."""
        found: dict[str, float] = defaultdict(float)
        for families in self.metrics.values():
            for family in families.values():
                for sample in family.samples:
                    if sample.name == series and sample.value:
                        names = labels or sorted(sample.labels)
                        key = " ".join(
                            sample.labels[each] for each in names if each in sample.labels
                        )
                        found[key] += sample.value
        return dict(found)


def has_data(told: Told, expr: str) -> bool:
    """Whether a query has a number for an answer."""
    return any(each["value"][1] != "NaN" for each in told.answers.get(expr, []))


def _work_first(product: Lodestone, tree: Path, ports: Mapping[str, int], told: Told) -> None:
    (tree / "data.bin").write_bytes(bytes(range(256)))
    told.report = product.index(tree)
    told.hits = len(product.search("where is a request dispatched", tree))
    assert told.hits
    told.first = {name: _scrape(ports[name]) for name in SERVICES}


def _work(product: Lodestone, tree: Path, live: Path) -> None:
    """Changes, indexes again, searches, and watches until the deadline."""
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

    def ask() -> bool:
        told.answers.update(
            {expr: server.query(expr) for expr in queries if not has_data(told, expr)}
        )
        return all(has_data(told, expr) for expr in queries)

    def asked() -> bool:
        again()
        return ask()

    with suppress(AssertionError):  # the tests say which has none
        wait_until(asked, 40, "every query has data")
    with suppress(AssertionError):  # the last work ended with a restart
        wait_until(partial(_all_up, server), 20, "all targets are scraped again")
    ask()  # gauges of who had just been restarted whenever they were asked
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
