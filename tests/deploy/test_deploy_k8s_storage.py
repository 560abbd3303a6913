"""Where the containers write there is room to write, and all of it fits into their limits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from services.embed.settings import EmbedSettings
from services.indexer.settings import IndexerSettings
from services.io.settings import IoSettings
from services.runtime.settings import load_settings
from tests.support.manifests import (
    COMPONENTS,
    Manifest,
    Pod,
    Target,
    environment_of,
    of_kind,
    overlay_targets,
    pods,
    quantity,
    rendered,
    services_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.runtime.settings import ServiceSettings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "io": IoSettings,
    "embed": EmbedSettings,
    "indexer": IndexerSettings,
}
_MIB = 1 << 20
WRITTEN = {"traces_folder", "cache_dir", "state_dir"}
"""Settings that name a folder into which the service writes."""

READ = {"model_dirs"}
_CONVERTED_BYTES = 1024 * _MIB
"""Room for what is converted of one model: some of its kind have weights of half of it."""

_IO_BYTES = 256 * _MIB
"""Memory of io beside its parsers: 80 MiB were measured, and the files that it reads."""

_PEOPLE = 10
"""Connections for people, for backups and for PostgreSQL itself."""


_BASES = ((), *((name,) for name in COMPONENTS), COMPONENTS)


@pytest.fixture(
    params=[
        *overlay_targets(),
        *(pytest.param(Target(None, each), id=str(Target(None, each))) for each in _BASES),
    ],
    scope="module",
)
def manifests(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    target: Target = request.param
    return target.render()


def test_every_setting_of_a_folder_is_known_here() -> None:
    """Red with a setting of a new folder, for which no manifest has room then."""
    found = {
        name
        for settings in SETTINGS.values()
        for name, field in settings.model_fields.items()
        if name.endswith(("_dir", "_dirs", "_folder"))
        or Path in (field.annotation, *get_args(field.annotation))
    }
    assert {name for name in found if not name.endswith("_file")} == WRITTEN | READ


def test_services_write_where_they_may(manifests: tuple[Manifest, ...]) -> None:
    for service, pod in services_of(manifests):
        _check_written(service, pod)


def _without_mount(pod: Pod) -> None:
    mounts = pod.containers[0]["volumeMounts"]
    mounts[:] = [each for each in mounts if each["mountPath"] == "/tmp"]


def _read_only(pod: Pod) -> None:
    pod.containers[0]["volumeMounts"][-1]["readOnly"] = True


def _too_small(pod: Pod) -> None:
    pod.spec["volumes"][-1]["emptyDir"]["sizeLimit"] = "16Mi"


def _too_much(pod: Pod) -> None:
    pod.spec["volumes"][0]["emptyDir"]["sizeLimit"] = "64Gi"


def _writing(pod: Pod) -> None:
    for variable in pod.containers[0]["env"]:
        if variable["name"] == "LODESTONE_IO_READ_ONLY":
            variable["value"] = "false"


def _journal_in_the_pod(pod: Pod) -> None:
    _writing(pod)
    path = "/var/lib/lodestone/traces/state"
    pod.containers[0]["env"].append({"name": "LODESTONE_IO_STATE_DIR", "value": path})


@pytest.mark.parametrize(
    "plant",
    [_without_mount, _read_only, _too_small, _too_much, _writing, _journal_in_the_pod],
)
def test_a_pod_that_could_not_write_would_be_told(plant: Callable[[Pod], None]) -> None:
    """Each plant is a mistake that a patch makes easily: red when the check lets one pass."""
    pod = dict(services_of(rendered(("trace-files",))))["io"]
    _check_written("io", pod)
    wrong = copy.deepcopy(pod)
    plant(wrong)

    with pytest.raises(AssertionError):
        _check_written("io", wrong)


def test_memory_of_parsers_fits_the_container(manifests: tuple[Manifest, ...]) -> None:
    """Red with the default of 2 GiB for each parser in a container of 2 GiB."""
    io = dict(services_of(manifests))["io"]
    limits = io.containers[0]["resources"]["limits"]
    settings = load_settings(IoSettings, environment_of(io))

    parsers = int(limits["cpu"]) * settings.parse_memory_bytes
    assert parsers + _IO_BYTES <= quantity(limits["memory"])


def test_embed_knows_the_memory_that_it_has(manifests: tuple[Manifest, ...]) -> None:
    """Red without the bound: a model too many ends the pod, and those that served with it."""
    (container,) = dict(services_of(manifests))["embed"].containers
    (bound,) = (
        each for each in container["env"] if each["name"] == "LODESTONE_EMBED_MAX_MEMORY_BYTES"
    )
    assert bound["valueFrom"]["resourceFieldRef"] == {
        "containerName": container["name"],
        "resource": "limits.memory",
    }


def test_the_indexer_asks_for_a_reranker_where_there_is_one(
    manifests: tuple[Manifest, ...],
) -> None:
    """Red with one half of the component: searches would wait for nobody, or nobody would ask."""
    found = dict(services_of(manifests))
    embed = load_settings(EmbedSettings, environment_of(found["embed"]))
    indexer = load_settings(IndexerSettings, environment_of(found["indexer"]))

    assert bool(embed.reranker) == bool(indexer.rerank_top)
    if embed.reranker:
        mount, _ = _mount_of(found["embed"], Path(embed.reranker))
        assert mount["readOnly"] is True


def test_connections_of_all_indexers_fit_the_database() -> None:
    """Red with 20 connections of each indexer, or a bound of KEDA's above 11."""
    manifests = rendered(COMPONENTS)
    indexer = dict(services_of(manifests))["indexer"]
    settings = load_settings(IndexerSettings, environment_of(indexer))
    scaled = of_kind(manifests, "ScaledObject")["lodestone-indexer"]["spec"]
    (postgres,) = (pod for pod in pods(manifests) if pod.name == "lodestone-postgres")
    arguments = dict(each.split("=") for each in postgres.containers[0]["args"] if "=" in each)

    surge = indexer.owner["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    most = (scaled["maxReplicaCount"] + surge) * settings.database_connections
    assert most + _PEOPLE <= int(arguments["max_connections"])


def test_parallel_workers_of_postgresql_have_memory_to_share() -> None:
    """Red without the volume: a container's own /dev/shm has 64 MiB, and counts for no limit."""
    (postgres,) = (pod for pod in pods(rendered(("postgres",))) if pod.name == "lodestone-postgres")
    _, volume = _mount_of(postgres, Path("/dev/shm"))

    assert volume["emptyDir"]["medium"] == "Memory"
    assert quantity(volume["emptyDir"]["sizeLimit"]) >= 256 * _MIB


def _check_written(service: str, pod: Pod) -> None:
    """Holds what a service writes to the volumes of its pod."""
    settings = load_settings(SETTINGS[service], environment_of(pod))
    _, temporary = _mount_of(pod, Path("/tmp"))
    assert "emptyDir" in temporary, pod.name
    for name in WRITTEN:
        folder = getattr(settings, name, None)
        if folder:
            mount, volume = _mount_of(pod, Path(folder))
            assert not mount.get("readOnly"), (pod.name, name)
            if "emptyDir" in volume:
                room = quantity(volume["emptyDir"]["sizeLimit"])
                assert room >= _bytes_of(name, settings), (pod.name, name)
    if isinstance(settings, IoSettings) and not settings.read_only:
        # A repeated request is known by all replicas, and after the pod has gone.
        assert settings.state_dir, pod.name
        assert "persistentVolumeClaim" in _mount_of(pod, Path(settings.state_dir))[1], pod.name
    on_disk = [
        quantity(volume["emptyDir"]["sizeLimit"])
        for volume in pod.spec["volumes"]
        if "emptyDir" in volume and volume["emptyDir"].get("medium") != "Memory"
    ]
    limits = pod.containers[0]["resources"]["limits"]
    assert sum(on_disk) <= quantity(limits["ephemeral-storage"]), pod.name


def _bytes_of(name: str, settings: ServiceSettings) -> int:
    """Returns the room that a folder needs."""
    if name == "traces_folder":
        return settings.traces_bytes
    if isinstance(settings, IoSettings):
        return settings.journal_bytes
    return _CONVERTED_BYTES


def _mount_of(pod: Pod, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the mount in which a folder lies, and its volume."""
    mounts = [
        each
        for each in pod.containers[0]["volumeMounts"]
        if folder.is_relative_to(each["mountPath"])
    ]
    assert mounts, (pod.name, folder)
    mount = max(mounts, key=lambda each: len(each["mountPath"]))
    (volume,) = (each for each in pod.spec["volumes"] if each["name"] == mount["name"])
    return mount, volume
