"""The identity of a model's vectors: two with different fingerprints must not be compared."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from services.embed.model import ModelIdentity, Precision

_DIGEST_BYTES = 16
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")


def fingerprint_of(identity: ModelIdentity, *, backend: str, precision: Precision) -> str:
    """Returns 32 hexadecimal digits that change with anything that changes a vector."""
    facts = {**asdict(identity), "backend": backend, "precision": str(precision)}
    return digest_of_json(facts)


def digest_of_json(value: object) -> str:
    """Returns a digest of a value's JSON, whatever the order of its keys."""
    return digest_of_bytes(json.dumps(value, sort_keys=True, default=str).encode())


def digest_of_bytes(data: bytes) -> str:
    """Returns a digest of bytes."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def digest_of_files(files: Iterable[Path], *, root: Path) -> str:
    """Returns a digest of files' names below `root` and of their bytes.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Returns the files below a folder that hold weights."""
    return sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHT_SUFFIXES)


def cheap_digest(folder: Path) -> str:
    """Returns a digest that changes when a model folder does, without reading its weights.

    Weights count by name, size and time of change; all smaller files that a model is configured by
    count by their bytes.
    """
    facts: list[tuple[str, object]] = []
    weights = set(weight_files(folder))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path in weights:
            status = path.stat()
            facts.append((name, [status.st_size, status.st_mtime_ns]))
        elif path.suffix in {".json", ".txt", ".model"} and path.is_file():
            facts.append((name, digest_of_bytes(path.read_bytes())))
    return digest_of_json(facts)
