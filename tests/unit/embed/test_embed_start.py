"""Settings, the meaning of `model`, and starts that fail with one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from services.embed.backends.converted import folder_for
from services.embed.settings import EmbedSettings
from services.embed.sources import FolderSource, HashingSource, resolve_source
from services.runtime.exits import ExitCode, StartError
from services.runtime.settings import load_settings
from tests.unit.embed.harness import bundled_folder, settings_of

if TYPE_CHECKING:
    from pathlib import Path


def test_the_bundled_model_is_the_default() -> None:
    source = resolve_source(EmbedSettings())

    assert isinstance(source, FolderSource)
    assert source.model_id == "all-minilm-l6-v2"
    assert (source.folder / "model.safetensors").is_file()


@pytest.mark.parametrize(("model", "dimensions"), [("hashing", 384), ("hashing:64", 64)])
def test_hashing_takes_a_number_of_dimensions(model: str, dimensions: int) -> None:
    assert resolve_source(settings_of(model=model)) == HashingSource("hashing", dimensions)  # type: ignore[arg-type]


def test_a_folder_gets_its_name_as_id_unless_one_is_set(tmp_path: Path) -> None:
    folder = tmp_path / "My Model (v2)"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")

    assert resolve_source(settings_of(model=str(folder))).model_id == "my-model-v2"
    named = settings_of(model=str(folder), model_id="code")
    assert resolve_source(named).model_id == "code"


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "minilmm"},
        {"model": "/nowhere/at/all"},
        {"model": "/etc"},
        {"model": "~nobody-of-this-name/model"},
        {"model": "/tmp/" + "x" * 300},
        {"model": "hashing:0"},
        {"model": "hashing:many"},
        {"model": "hashing", "backend": "openvino"},
        {"model": "minilm", "backend": "hashing"},
    ],
)
def test_an_unknown_model_is_refused_with_what_there_is(fields: dict[str, str]) -> None:
    with pytest.raises(StartError) as failure:
        resolve_source(settings_of(**fields))

    assert failure.value.code is ExitCode.MODEL
    assert "LODESTONE_EMBED_MODEL" in failure.value.message
    assert "minilm, hashing" in failure.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QUEUE_TOKENS", "none"),
        ("MAX_BATCH_TEXTS", "257"),
        ("BACKEND", "onnx"),
        ("MODEL_ID", "Not/A/Name"),
        ("TOKEN_BUDGET", "-1"),
        ("TOKENIZER_THREADS", "0"),
    ],
)
def test_a_wrong_value_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LODESTONE_EMBED_{name}", value)

    with pytest.raises(StartError) as failure:
        load_settings(EmbedSettings)

    assert failure.value.code is ExitCode.USAGE
    assert f"LODESTONE_EMBED_{name}" in failure.value.message


def _start(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LODESTONE_EMBED_LISTEN": f"unix:{tmp_path}/s",
        **{f"LODESTONE_EMBED_{name}": value for name, value in variables.items()},
    }
    return subprocess.run(
        [sys.executable, "-m", "services.embed"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_process_with_an_unknown_model_ends_with_one_line_and_its_code(tmp_path: Path) -> None:
    ended = _start(tmp_path, MODEL="nonsense")

    assert ended.returncode == ExitCode.MODEL
    assert "LODESTONE_EMBED_MODEL=nonsense" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_folder_that_holds_no_model_ends_with_one_line_and_its_code(tmp_path: Path) -> None:
    """The folder looks like a model until the child process reads it."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    (folder / "config.json").write_text("{}")

    ended = _start(tmp_path, MODEL=str(folder), CACHE_DIR=str(tmp_path / "cache"))

    assert ended.returncode == ExitCode.MODEL
    assert "does not convert" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_a_folder_whose_weights_are_not_there_ends_with_one_line_and_its_code(
    tmp_path: Path,
) -> None:
    """Red when the error of a file ends the start: folders of a cache of downloads hold links."""
    folder = tmp_path / "pruned"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")

    ended = _start(tmp_path, MODEL=str(folder), CACHE_DIR=str(tmp_path / "cache"))

    assert ended.returncode == ExitCode.MODEL
    assert "No such file" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_converted_model_that_is_damaged_is_named(tmp_path: Path) -> None:
    """Red when the model's process dies of it: the start tells of too little memory."""
    model = bundled_folder()
    folder = folder_for(model, cache_dir=tmp_path / "cache", model_id="all-minilm-l6-v2")
    folder.mkdir(parents=True)

    ended = _start(tmp_path, CACHE_DIR=str(tmp_path / "cache"))

    assert ended.returncode == ExitCode.MODEL
    assert ended.stderr.splitlines()[-1].endswith(f"remove the folder {folder}.")
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    ended = _start(tmp_path, CACHE_DIR=str(tmp_path / "file" / "cache"))

    assert ended.returncode == ExitCode.MODEL
    assert "LODESTONE_EMBED_CACHE_DIR" in ended.stderr.splitlines()[-1]
