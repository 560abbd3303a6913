"""Kubernetes manifests as kubectl renders them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _pytest.mark import ParameterSet

K8S = Path(__file__).parent.parent.parent / "deploy" / "k8s"
COMPONENTS = tuple(sorted(path.name for path in (K8S / "components").iterdir()))
OVERLAYS = tuple(sorted(path.name for path in (K8S / "overlays").iterdir()))
WHOLE = os.environ.get("LODESTONE_TEST_COMBINATIONS") == "all"
"""Whether every combination is held to the policies too: minutes, for the night."""

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod's template with what holds it."""

    name: str
    owner: Manifest
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All containers, those that run first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


@dataclass(frozen=True, slots=True)
class Target:
    """What may be applied: an overlay, or the base alone, and components that are added."""

    overlay: str | None
    added: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join((self.overlay or "base", *self.added))

    def render(self) -> tuple[Manifest, ...]:
        """Renders it."""
        if self.overlay is None:
            return rendered(self.added)
        if not self.added:
            return rendered_overlay(self.overlay)
        return rendered_overlay_with(self.overlay, self.added)


def overlay_targets() -> list[ParameterSet]:
    """Returns each overlay alone, and with each component that it has not; at night with all sets.

    These are parameters of tests; what is rendered anew for one component takes a second.
    """
    return [
        pytest.param(target, id=str(target), marks=[pytest.mark.slow] if target.added else [])
        for name in OVERLAYS
        for size in range(len(missing_from(name)) + 1 if WHOLE else 2)
        for target in (Target(name, added) for added in combinations(missing_from(name), size))
    ]


@cache
def rendered_overlay(name: str) -> tuple[Manifest, ...]:
    """Renders an overlay."""
    return _render(K8S / "overlays" / name)


@cache
def rendered_overlay_with(name: str, components: tuple[str, ...]) -> tuple[Manifest, ...]:
    """Renders an overlay to whose components somebody added some."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "deploy"
        shutil.copytree(K8S.parent, copy)
        place = copy / K8S.name / "overlays" / name / "kustomization.yaml"
        text = yaml.safe_load(place.read_text("utf-8"))
        text["components"] += [f"../../components/{each}" for each in components]
        place.write_text(yaml.safe_dump(text), "utf-8")
        return _render(place.parent)


def missing_from(name: str) -> tuple[str, ...]:
    """Returns the components that an overlay does not have."""
    text = yaml.safe_load((K8S / "overlays" / name / "kustomization.yaml").read_text("utf-8"))
    return tuple(sorted(set(COMPONENTS) - {Path(each).name for each in text["components"]}))


@cache
def rendered(components: tuple[str, ...]) -> tuple[Manifest, ...]:
    """Renders the base with components."""
    with tempfile.TemporaryDirectory() as folder:
        return _render(_combination(Path(folder), components))


def pods(manifests: Sequence[Manifest]) -> Iterator[Pod]:
    """Yields every template of a pod."""
    for each in manifests:
        template = each.get("spec", {}).get("template")
        if template is not None:
            labels = template["metadata"]["labels"]
            yield Pod(each["metadata"]["name"], each, labels, template["spec"])


def of_kind(manifests: Sequence[Manifest], kind: str) -> dict[str, Manifest]:
    """Returns the manifests of a kind by name."""
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def services_of(manifests: Sequence[Manifest]) -> list[tuple[str, Pod]]:
    """Returns the pods of the three services, by the service's name."""
    found = [
        (pod.labels["app.kubernetes.io/component"], pod)
        for pod in pods(manifests)
        if pod.owner["kind"] == "Deployment"
    ]
    assert {name for name, _ in found} == {"io", "embed", "indexer"}
    return found


def environment_of(pod: Pod) -> dict[str, str]:
    """Returns the variables of a pod's only container; a field or a secret is some value."""
    (container,) = pod.containers
    return {each["name"]: str(each.get("value", "2")) for each in container["env"]}


def quantity(text: str) -> int:
    """Returns the bytes of a quantity such as `64Mi`."""
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
    return int(text[:-2]) * units[text[-2:]] if text[-2:] in units else int(text)


def _combination(folder: Path, components: Sequence[str]) -> Path:
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [_relative(folder, K8S / "base")],
        "components": [_relative(folder, K8S / "components" / name) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(text), "utf-8")
    return folder


def _relative(folder: Path, target: Path) -> str:
    up = "/".join(".." for _ in folder.resolve().parts[1:])
    return f"{up}{target.resolve()}"


def _render(folder: Path) -> tuple[Manifest, ...]:
    kubectl = Path(sys.executable).parent / "kubectl"
    result = subprocess.run(
        [kubectl, "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr
    return tuple(yaml.safe_load_all(result.stdout))
