"""Overlays and combinations of components render, are valid, and keep the policies."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import kubernetes_validate
import pytest

from services.embed.app import EmbedApp
from services.embed.settings import EmbedSettings
from services.indexer.app import IndexerApp
from services.indexer.settings import IndexerSettings
from services.io.app import IoApp
from services.io.settings import IoSettings
from services.runtime.addresses import is_local
from services.runtime.health import LIVENESS
from services.runtime.settings import load_settings
from tests.support.manifests import (
    COMPONENTS,
    OVERLAYS,
    WHOLE,
    Manifest,
    Target,
    environment_of,
    of_kind,
    overlay_targets,
    pods,
    rendered,
    rendered_overlay,
    services_of,
)

if TYPE_CHECKING:
    from services.runtime.settings import ServiceSettings

KUBERNETES_VERSIONS = ("1.34", "1.37")
SETTINGS: dict[str, type[ServiceSettings]] = {
    "io": IoSettings,
    "embed": EmbedSettings,
    "indexer": IndexerSettings,
}
PORTS = {"io": 7301, "embed": 7302, "indexer": 7303}
HEALTH_PORTS = {"io": 7401, "embed": 7402, "indexer": 7403}
_CLOSING_SECONDS = 10
"""After the drain a service closes what it built, and sends its last spans."""

_CRDS = Path(__file__).parent / "crds"
_EVERY_SIZE = range(len(COMPONENTS) + 1)
_POLICY_SIZES = _EVERY_SIZE if WHOLE else (0, 1, len(COMPONENTS))
_VALID_SIZES = _EVERY_SIZE if WHOLE else (0, 1, 2, len(COMPONENTS))
_OVERLAYS = overlay_targets()
_TARGETS = [
    *_OVERLAYS,
    *(
        pytest.param(Target(None, names), id=str(Target(None, names)))
        for size in _POLICY_SIZES
        for names in combinations(COMPONENTS, size)
    ),
]


@pytest.fixture(params=_TARGETS)
def manifests(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    target: Target = request.param
    return target.render()


_VALID: set[tuple[str, str]] = set()
"""Manifests that were valid before: most come again in other combinations."""


def _validate(manifest: Manifest, version: str) -> None:
    key = json.dumps(manifest), version
    if key in _VALID:
        return
    crd = _CRDS / f"{manifest['kind']}.json"
    if crd.exists():
        jsonschema.Draft202012Validator(json.loads(crd.read_text("utf-8"))).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)
    _VALID.add(key)


@pytest.mark.slow
@pytest.mark.parametrize("size", _VALID_SIZES)
def test_combinations_of_components_are_valid(size: int) -> None:
    """Any two together, and all of them: what two do to each other shows there.

    At night every combination.

    Planted once: a misspelt field in a component, and a patch of a container that is not.
    """
    for names in combinations(COMPONENTS, size):
        for manifest in rendered(names):
            _validate(manifest, KUBERNETES_VERSIONS[-1])


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("target", _OVERLAYS)
def test_overlays_are_valid_in_each_version(target: Target, version: str) -> None:
    """Also with components that they have not."""
    for manifest in target.render():
        _validate(manifest, version)


def test_a_wrong_manifest_would_be_refused() -> None:
    wrong = json.loads(json.dumps(of_kind(rendered(()), "Deployment")["lodestone-io"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    scaled = json.loads(json.dumps(of_kind(rendered(("keda",)), "ScaledObject")["lodestone-embed"]))
    scaled["spec"]["maxReplica"] = 3

    with pytest.raises(kubernetes_validate.ValidationError):
        _validate(wrong, KUBERNETES_VERSIONS[-1])
    with pytest.raises(jsonschema.ValidationError):
        _validate(scaled, KUBERNETES_VERSIONS[-1])


def test_pods_are_restricted(manifests: tuple[Manifest, ...]) -> None:
    """What the restricted pod security standard asks for, and no token of the API server."""
    found = list(pods(manifests))
    assert len(found) >= 4
    for pod in found:
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True, pod.name
        assert context["runAsUser"] > 0, pod.name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, pod.name
        assert pod.spec["automountServiceAccountToken"] is False, pod.name
        assert pod.spec["enableServiceLinks"] is False, pod.name
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(pod.spec)
        assert not any("hostPath" in volume for volume in pod.spec["volumes"]), pod.name


def test_containers_are_restricted(manifests: tuple[Manifest, ...]) -> None:
    """Planted once: a container of the postgres component without readOnlyRootFilesystem."""
    for pod in pods(manifests):
        for container in pod.containers:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, pod.name
            assert context["readOnlyRootFilesystem"] is True, pod.name
            assert context["capabilities"] == {"drop": ["ALL"]}, pod.name
            assert "privileged" not in context, pod.name
            assert "hostPort" not in json.dumps(container.get("ports", [])), pod.name


def test_containers_have_requests_and_limits(manifests: tuple[Manifest, ...]) -> None:
    for pod in pods(manifests):
        for container in pod.containers:
            for part in ("requests", "limits"):
                named = set(container["resources"][part])
                assert {"cpu", "memory", "ephemeral-storage"} <= named, (pod.name, part)
        for volume in pod.spec["volumes"]:
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], pod.name


def test_servers_have_the_three_probes(manifests: tuple[Manifest, ...]) -> None:
    for pod in pods(manifests):
        if pod.owner["kind"] == "Job":
            continue
        for container in pod.containers:
            probes = {"startupProbe", "readinessProbe", "livenessProbe"}
            assert probes <= set(container), pod.name
            seconds = container["startupProbe"]["periodSeconds"]
            assert seconds * container["startupProbe"]["failureThreshold"] >= 60, pod.name


def test_liveness_asks_for_the_process_alone(manifests: tuple[Manifest, ...]) -> None:
    """A probe that fails while the database is away would restart every replica at once.

    Planted once: a liveness probe without its service, which is the readiness of the whole.
    """
    for service, pod in services_of(manifests):
        (container,) = pod.containers
        assert container["livenessProbe"]["grpc"] == {
            "port": HEALTH_PORTS[service],
            "service": LIVENESS,
        }
        for name in ("startupProbe", "readinessProbe"):
            assert container[name]["grpc"]["port"] == HEALTH_PORTS[service], pod.name
            assert container[name]["grpc"].get("service", "") == "", pod.name


def test_settings_are_ones_that_the_services_take(manifests: tuple[Manifest, ...]) -> None:
    """Planted once: LODESTONE_IO_PARSE_WORKER, a drain of 6,000 seconds, and one set twice."""
    for service, pod in services_of(manifests):
        load_settings(SETTINGS[service], environment_of(pod))
        assert len(environment_of(pod)) == len(pod.containers[0]["env"]), pod.name
    (migrate,) = (pod for pod in pods(manifests) if pod.owner["kind"] == "Job")
    load_settings(IndexerSettings, environment_of(migrate))


def test_the_time_to_stop_fits_what_the_service_takes(manifests: tuple[Manifest, ...]) -> None:
    """Planted once: LODESTONE_EMBED_DRAIN_SECONDS=60 in the base."""
    for service, pod in services_of(manifests):
        settings = load_settings(SETTINGS[service], environment_of(pod))
        (container,) = pod.containers
        waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        needed = waits + settings.drain_seconds + _CLOSING_SECONDS
        assert pod.spec["terminationGracePeriodSeconds"] >= needed, pod.name


def test_replicas_are_spread_and_survive_a_drain(manifests: tuple[Manifest, ...]) -> None:
    budgets = of_kind(manifests, "PodDisruptionBudget")
    for _, pod in services_of(manifests):
        selector = {"app.kubernetes.io/name": pod.name}
        keys = {each["topologyKey"] for each in pod.spec["topologySpreadConstraints"]}
        assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for each in pod.spec["topologySpreadConstraints"]:
            assert each["labelSelector"]["matchLabels"] == selector
        budget = budgets[pod.name]["spec"]
        assert budget["selector"]["matchLabels"] == selector
        assert budget["maxUnavailable"] == 1
        rolling = pod.owner["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxSurge"] + rolling["maxUnavailable"] >= 1


def test_services_are_headless_and_clients_balance(manifests: tuple[Manifest, ...]) -> None:
    found = of_kind(manifests, "Service")
    for service, pod in services_of(manifests):
        spec = found[pod.name]["spec"]
        assert spec["clusterIP"] == "None"
        assert [port["port"] for port in spec["ports"]] == [PORTS[service]]
        assert spec["selector"].items() <= pod.labels.items()
    indexer = dict(services_of(manifests))["indexer"]
    environment = environment_of(indexer)
    for service in ("io", "embed"):
        address = environment[f"LODESTONE_INDEXER_{service.upper()}_ADDRESS"]
        assert address == f"dns:///lodestone-{service}:{PORTS[service]}"


def test_workspaces_are_read_only(manifests: tuple[Manifest, ...]) -> None:
    io = dict(services_of(manifests))["io"]
    (container,) = io.containers
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "workspaces")
    (volume,) = (each for each in io.spec["volumes"] if each["name"] == "workspaces")
    environment = environment_of(io)

    assert mount["readOnly"] is True
    assert volume["persistentVolumeClaim"]["readOnly"] is True
    assert environment["LODESTONE_IO_READ_ONLY"] == "true"
    assert environment["LODESTONE_IO_ROOTS"].endswith(f"={mount['mountPath']}")
    for pod in pods(manifests):
        assert pod is io or "workspaces" not in json.dumps(pod.spec) or pod.name == io.name


def test_only_the_indexer_and_the_migration_know_the_database(
    manifests: tuple[Manifest, ...],
) -> None:
    for pod in pods(manifests):
        knows = "LODESTONE_DATABASE_URL" in json.dumps(pod.spec)
        assert knows == (pod.name in {"lodestone-indexer", "lodestone-migrate"}), pod.name


def test_the_schema_comes_from_a_job(manifests: tuple[Manifest, ...]) -> None:
    job = of_kind(manifests, "Job")["lodestone-migrate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "services.indexer.migrate"]
    indexer = dict(services_of(manifests))["indexer"].containers[0]
    assert container["image"] == indexer["image"]
    assert job["activeDeadlineSeconds"] > 0


def test_no_secret_stands_in_a_manifest(manifests: tuple[Manifest, ...]) -> None:
    assert not of_kind(manifests, "Secret")
    for pod in pods(manifests):
        for container in pod.containers:
            for variable in container.get("env", ()):
                named = any(
                    word in variable["name"] for word in ("URL", "PASSWORD", "TOKEN", "KEY")
                )
                if named and not variable["name"].endswith("_FILE"):
                    assert "secretKeyRef" in variable["valueFrom"], (pod.name, variable["name"])


def test_who_knows_the_database_has_its_authority(manifests: tuple[Manifest, ...]) -> None:
    """A DSN that verifies names a file; without one the pod starts all the same."""
    for pod in pods(manifests):
        (container, *_) = pod.containers
        if not any(each["name"] == "LODESTONE_DATABASE_URL" for each in container.get("env", ())):
            continue
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in pod.spec["volumes"]}
        secret = volumes[mounts["/etc/lodestone/database"]]["secret"]
        assert secret["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
        assert secret["optional"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_listens_beyond_the_pod_has_tls_and_tokens(overlay: str) -> None:
    """Without them the services refuse to start. Planted once: no tls component in dev."""
    for service, pod in services_of(rendered_overlay(overlay)):
        settings = load_settings(SETTINGS[service], environment_of(pod))
        assert not is_local(settings.listen)
        assert settings.tls.serves, service
        assert settings.accepted_tokens_file is not None, service
        assert settings.health_listen.endswith(f":{HEALTH_PORTS[service]}"), service
        if service == "indexer":
            assert settings.tls.connects
            assert settings.token_file is not None


def test_secrets_are_mounted_so_that_they_can_rotate() -> None:
    for service, pod in services_of(rendered(("tls",))):
        (container,) = pod.containers
        settings = load_settings(SETTINGS[service], environment_of(pod))
        mounts = {Path(each["mountPath"]): each for each in container["volumeMounts"]}
        files = [settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file]
        files += [settings.accepted_tokens_file, settings.token_file]
        for file in filter(None, files):
            assert mounts[file.parent]["readOnly"] is True
            assert "subPath" not in mounts[file.parent]


def test_prometheus_speaks_tls_to_each_service() -> None:
    monitors = of_kind(rendered(("monitoring",)), "PodMonitor")
    assert set(monitors) == {f"lodestone-{service}" for service in SETTINGS}
    for name, monitor in monitors.items():
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"]["serverName"] == name
        assert endpoint["port"] == "metrics"
        assert monitor["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}


def test_who_must_show_a_certificate_has_one(manifests: tuple[Manifest, ...]) -> None:
    """Red without those of the PodMonitors, and without the authority of one service's clients."""
    found = {
        service: load_settings(SETTINGS[service], environment_of(pod))
        for service, pod in services_of(manifests)
    }
    (required,) = {settings.tls.require_client for settings in found.values()}
    assert not required or found["indexer"].tls.certificate is not None
    for monitor in of_kind(manifests, "PodMonitor").values():
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        shown = {key: endpoint["tlsConfig"].get(key) for key in ("cert", "keySecret")}
        secret = "lodestone-prometheus-tls"
        assert shown == {
            "cert": {"secret": {"name": secret, "key": "tls.crt"}} if required else None,
            "keySecret": {"name": secret, "key": "tls.key"} if required else None,
        }


def test_mutual_tls_brings_all_that_it_takes() -> None:
    """Also where `tls` is named as well, as overlays do. Red with the base's settings."""
    for names in (("mutual-tls",), ("mutual-tls", "tls"), ("tls", "mutual-tls")):
        for service, pod in services_of(rendered(names)):
            settings = load_settings(SETTINGS[service], environment_of(pod))
            assert settings.tls.require_client, service
            assert settings.accepted_tokens_file is not None, service
            mounted = [each["mountPath"] for each in pod.containers[0]["volumeMounts"]]
            for file in settings.tls.paths():
                assert mounted.count(str(file.parent)) == 1, service


def test_gpu_pods_run_where_a_gpu_is() -> None:
    embed = dict(services_of(rendered(("gpu",))))["embed"]
    (container,) = embed.containers
    assert embed.spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert embed.spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert container["image"] == "lodestone-embed-gpu"
    assert environment_of(embed)["LODESTONE_EMBED_BACKEND"] == "torch"
    assert "nvidia" not in json.dumps(rendered(()))


def test_scaling_owns_the_replicas_and_goes_by_age(manifests: tuple[Manifest, ...]) -> None:
    """Red when `dev` with keda sets the number of replicas, which KEDA does."""
    found = of_kind(manifests, "ScaledObject")
    for name, scaled in found.items():
        assert "replicas" not in of_kind(manifests, "Deployment")[name]["spec"]
        (trigger,) = scaled["spec"]["triggers"]
        assert "oldest_seconds" in trigger["metadata"]["query"]
        assert scaled["spec"]["minReplicaCount"] >= 2
    assert set(found) in (set(), {"lodestone-embed", "lodestone-indexer"})


@pytest.mark.parametrize("target", _OVERLAYS)
def test_images_of_overlays_are_named_by_digest_or_tag(target: Target) -> None:
    """Also with what may be added. Red when the image that a component names has neither.

    What `postgres` brings is for trials, and has its tag.
    """
    for pod in pods(target.render()):
        named = ":dev" if target.overlay == "dev" else "@sha256:"
        for container in pod.containers:
            known = ":0.8." if pod.name == "lodestone-postgres" else named
            assert known in container["image"], pod.name


def test_names_of_health_are_ones_that_the_services_have() -> None:
    for service, app in (("io", IoApp), ("embed", EmbedApp), ("indexer", IndexerApp)):
        assert all(name.startswith(f"lodestone.{service}.v1.") for name in app.service_names)
        assert LIVENESS not in app.service_names
