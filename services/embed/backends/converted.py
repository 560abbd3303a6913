"""The folder that a model was converted into, and how to get it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from services.embed.canary import CANARY_VERSION
from services.embed.fingerprint import cheap_digest, digest_of_json
from services.embed.model import ModelIdentity, Prompts
from services.runtime.exits import ExitCode, StartError
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from services.embed.model import Vectors

GRAPH = "model.xml"
TOKENIZER = "tokenizer.json"
RERANKER = "reranker"
"""Argument of a conversion: the folder holds a cross-encoder."""
_FACTS = "model.json"
_CANARY = "canary.npy"
_CONVERSION_VERSION = 3
"""Counts changes of what a conversion writes; folders of other versions are not read."""
_LINE_CHARS = 300
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment under which the libraries of a model touch no network."""


@dataclass(frozen=True, slots=True)
class ConvertedFacts:
    """What a converted model is, as its folder tells."""

    dimensions: int
    token_types: bool
    identity: ModelIdentity
    scores: bool = False


def write_facts(folder: Path, facts: ConvertedFacts, canary: Vectors) -> None:
    """Writes facts and canary vectors beside the graph."""
    (folder / _FACTS).write_text(json.dumps(asdict(facts), sort_keys=True, indent=1))
    np.save(folder / _CANARY, canary)


def read_facts(folder: Path) -> ConvertedFacts:
    """Returns the facts of a converted folder."""
    data: dict[str, Any] = json.loads((folder / _FACTS).read_text())
    identity = data.pop("identity")
    prompts = Prompts(**identity.pop("prompts"))
    return ConvertedFacts(identity=ModelIdentity(prompts=prompts, **identity), **data)


def read_canary(folder: Path) -> Vectors:
    """Returns the float32 vectors of the canary texts."""
    vectors: Vectors = np.load(folder / _CANARY)
    return vectors


def folder_for(source: Path, *, cache_dir: Path, model_id: str, reranks: bool = False) -> Path:
    """Returns where the conversion of a model lies, or will; another one when anything changed."""
    facts = [cheap_digest(source), version("openvino"), CANARY_VERSION, _CONVERSION_VERSION]
    # One folder may be read as either kind.
    key = digest_of_json([*facts, RERANKER] if reranks else facts)
    return cache_dir / f"{model_id}-{key[:16]}"


async def ensure_converted(
    source: Path,
    *,
    cache_dir: Path,
    model_id: str,
    timeout_seconds: float,
    reranks: bool = False,
) -> Path:
    """Returns the folder of the converted model, converting it in a child process when it is new.

    The child imports torch, so that this process need not. Safe to run in several processes.

    Raises:
        StartError: the cache cannot be written, or the model does not convert.
    """
    folder = await asyncio.to_thread(
        folder_for, source, cache_dir=cache_dir, model_id=model_id, reranks=reranks
    )
    if await asyncio.to_thread(folder.is_dir):
        return folder
    try:
        await asyncio.to_thread(cache_dir.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(
            ExitCode.MODEL,
            f"Cannot keep converted models ({error.strerror}). Set LODESTONE_EMBED_CACHE_DIR to a "
            f"folder that can be written; it is {cache_dir}.",
        ) from None
    get_logger().info("model_conversion_started", model=model_id)
    await _convert(source, folder, timeout_seconds, reranks=reranks)
    get_logger().info("model_conversion_finished", model=model_id)
    return folder


async def _convert(source: Path, folder: Path, timeout_seconds: float, *, reranks: bool) -> None:
    kind = (RERANKER,) if reranks else ()
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.embed.backends.conversion"),
        *(str(os.getpid()), str(source), str(folder), *kind),
        env={**os.environ, **OFFLINE},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            _, errors = await child.communicate()
    except TimeoutError:
        raise StartError(
            ExitCode.MODEL,
            f"Converting the model took more than {timeout_seconds:.0f} s. Raise "
            f"LODESTONE_EMBED_CONVERT_TIMEOUT_SECONDS. The model is {source}.",
        ) from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == ExitCode.DISK_FULL:
        raise StartError(
            ExitCode.DISK_FULL,
            "No space is left for the converted model. Free some, or set LODESTONE_EMBED_CACHE_DIR "
            f"to a folder with room; it is {folder.parent}.",
        )
    if child.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise StartError(
            ExitCode.MODEL,
            f"The model does not convert to OpenVINO: {lines[-1][:_LINE_CHARS]}. "
            f"LODESTONE_EMBED_BACKEND=torch may run it. The model is {source}.",
        )
