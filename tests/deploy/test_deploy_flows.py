"""Who may talk to whom, as the policies of what is rendered say; nothing else may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.support.manifests import (
    COMPONENTS,
    OVERLAYS,
    Manifest,
    Pod,
    Target,
    of_kind,
    overlay_targets,
    pods,
    rendered_overlay,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_BASES = [("network-policies",), ("network-policies", "postgres"), COMPONENTS]
_TARGETS = [
    *overlay_targets(),
    *(pytest.param(Target(None, each), id=str(Target(None, each))) for each in _BASES),
]


class Flow(NamedTuple):
    """What may be sent, or be received: `other` is a pod of the namespace, or who is outside."""

    pod: str
    direction: str
    other: str
    protocol: str
    port: int


_SERVICES = {"lodestone-io": 9301, "lodestone-embed": 9302, "lodestone-indexer": 9303}
"""Each with the port of its metrics."""

_CALLS = {
    ("lodestone-indexer", "lodestone-io", 7301),
    ("lodestone-indexer", "lodestone-embed", 7302),
}
_STORES = ("lodestone-indexer", "lodestone-migrate")
_DNS = "pods k8s-app=kube-dns of kubernetes.io/metadata.name=kube-system"
_CLIENTS = "pods lodestone.dev/client=true of lodestone.dev/clients=true"
_MONITORING = "of kubernetes.io/metadata.name=monitoring"
_PROMETHEUS = f"pods app.kubernetes.io/name=prometheus {_MONITORING}"
_COLLECTOR = f"pods app.kubernetes.io/name=opentelemetry-collector {_MONITORING}"
_DATABASE = "network 192.0.2.0/24"


@pytest.fixture(params=_TARGETS)
def manifests(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    target: Target = request.param
    return target.render()


def test_nothing_flows_but_what_is_named(manifests: tuple[Manifest, ...]) -> None:
    """Both ends of a flow in the namespace, and what leaves and enters it.

    Red with a flow from io to embed in one direction, with an overlay without policies, with
    clients of io, with TCP 443 beside DNS, with a rule without peers, and with another network.
    """
    named = {pod.name: pod for pod in pods(manifests)}
    policies = of_kind(manifests, "NetworkPolicy")

    assert policies["default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    assert set(_flows(policies, named)) == _expected(named)


@pytest.mark.parametrize("target", overlay_targets())
def test_all_is_in_a_namespace_that_takes_restricted_pods_alone(target: Target) -> None:
    """Red without the labels: then Kubernetes lets in any pod."""
    manifests = target.render()
    (namespace,) = of_kind(manifests, "Namespace").values()
    assert namespace["metadata"]["name"] == "lodestone"
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["pod-security.kubernetes.io/enforce-version"] == "latest"
    assert labels["pod-security.kubernetes.io/warn"] == "restricted"
    for each in manifests:
        assert each["kind"] == "Namespace" or each["metadata"]["namespace"] == "lodestone"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("ScaledObject", {"lodestone-embed", "lodestone-indexer"}),
        ("PodMonitor", set(_SERVICES)),
        ("PrometheusRule", {"lodestone"}),
    ],
)
def test_prod_scales_and_is_watched(kind: str, names: set[str]) -> None:
    """Red when the overlay has lost `keda` or `monitoring`."""
    assert set(of_kind(rendered_overlay("prod"), kind)) == names


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_of_metrics_have_the_name_that_policies_use(overlay: str) -> None:
    """A policy and a PodMonitor name the port; of a name that no pod has they let nobody in."""
    for pod in pods(rendered_overlay(overlay)):
        if pod.name in _SERVICES:
            assert _port_of(pod, "metrics") == _SERVICES[pod.name]


def _expected(named: Mapping[str, Pod]) -> set[Flow]:
    """Returns all that may flow, by which pods there are."""
    calls = set(_CALLS)
    if "lodestone-postgres" in named:
        calls |= {(store, "lodestone-postgres", 5432) for store in _STORES}
    flows = {Flow(one, "egress", other, "TCP", port) for one, other, port in calls}
    flows |= {Flow(other, "ingress", one, "TCP", port) for one, other, port in calls}
    flows |= {Flow(pod, "egress", _DNS, each, 53) for pod in named for each in ("TCP", "UDP")}
    flows |= {Flow(store, "egress", _DATABASE, "TCP", 5432) for store in _STORES}
    flows |= {Flow(pod, "egress", _COLLECTOR, "TCP", 4317) for pod in _SERVICES}
    flows |= {Flow(pod, "ingress", _PROMETHEUS, "TCP", port) for pod, port in _SERVICES.items()}
    return flows | {Flow("lodestone-indexer", "ingress", _CLIENTS, "TCP", 7303)}


def _flows(policies: Mapping[str, Manifest], named: Mapping[str, Pod]) -> Iterator[Flow]:
    """Yields what the policies allow; one that this cannot read fails the test."""
    for policy in policies.values():
        spec = policy["spec"]
        assert set(spec) <= {"podSelector", "policyTypes", "ingress", "egress"}
        for direction, side in (("ingress", "from"), ("egress", "to")):
            rules = spec.get(direction, ())
            assert not rules or direction.title() in spec["policyTypes"]
            for rule in rules:
                assert set(rule) <= {side, "ports"}
                for pod in _chosen(spec["podSelector"], named):
                    yield from _flows_of(pod, direction, rule, side, named)


def _flows_of(
    pod: str, direction: str, rule: Mapping[str, Any], side: str, named: Mapping[str, Pod]
) -> Iterator[Flow]:
    peers: Sequence[Mapping[str, Any]] = rule.get(side) or [{}]
    ports: Sequence[Mapping[str, Any]] = rule.get("ports") or [{"protocol": "every", "port": 0}]
    for peer in peers:
        for other in _others(peer, named):
            for port in ports:
                assert set(port) == {"protocol", "port"}
                holder = named[other if other in named and direction == "egress" else pod]
                yield Flow(pod, direction, other, port["protocol"], _port_of(holder, port["port"]))


def _others(peer: Mapping[str, Any], named: Mapping[str, Pod]) -> list[str]:
    """Returns the pods of the namespace, or words for who is outside of it."""
    if set(peer) == {"podSelector"}:
        return _chosen(peer["podSelector"], named)
    if set(peer) == {"ipBlock"}:
        excepted = peer["ipBlock"].get("except")
        return [f"network {peer['ipBlock']['cidr']}" + (f" but {excepted}" if excepted else "")]
    if set(peer) == {"podSelector", "namespaceSelector"}:
        return [f"pods {_words(peer['podSelector'])} of {_words(peer['namespaceSelector'])}"]
    assert set(peer) <= {"namespaceSelector"}
    return [f"all pods of {_words(peer['namespaceSelector'])}" if peer else "everybody"]


def _words(selector: Mapping[str, Any]) -> str:
    assert set(selector) <= {"matchLabels"}
    return ",".join(f"{key}={value}" for key, value in selector.get("matchLabels", {}).items())


def _port_of(pod: Pod, port: int | str) -> int:
    if isinstance(port, int):
        return port
    (number,) = (
        each["containerPort"]
        for container in pod.containers
        for each in container["ports"]
        if each["name"] == port
    )
    return int(number)


def _chosen(selector: Mapping[str, Any], named: Mapping[str, Pod]) -> list[str]:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    wanted = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in expressions)
    return [
        name
        for name, pod in named.items()
        if wanted.items() <= pod.labels.items()
        and all(pod.labels.get(each["key"]) in each["values"] for each in expressions)
    ]
