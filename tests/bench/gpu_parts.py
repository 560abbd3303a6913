"""The parts of `make bench-gpu`, each for a process of its own: `gpu_parts PART TEXTS`.

A part takes a file with a list of texts in JSON, and writes each figure as a line of JSON as soon
as it is there.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from services.runtime import log
from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.embed.backends.protocol import LoadedModel
    from services.embed.model import TokenIds, Vectors

_ROUNDS = 5
_LIBRARY_BATCH = 256
_SHORT_CHARS = 160
_LONG_CHARS = 900
_BUSY_GOAL = 0.9
_ONE_BY_ONE = 512
"""Texts of the rounds in which each is a batch, as a user's query is."""
_NO_LOSS = 0.98
"""What graphs must come to at least: those that do not win are not used."""
_COSINES = {"float16": 0.999, "bfloat16": 0.999, "float32": 0.9999}
_SAMPLE = 256
_SCRIPTS = "Löscht alte Dateien. Удаляет старые файлы. 古いファイルを削除する。 حذف الملفات. ไฟล์ 🗑️"
_WORD_COUNTS = (1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 250, 254, 255, 256, 900)
_REFERENCE_CHARS = 1 << 16
"""What the library gets of a text: it would tokenize all of 50 MB, and reads no more of it."""
_TEXTS_PER_REQUEST = 128
_REQUESTS_AT_ONCE = 6
"""Together less than what the service lets wait, however long the texts."""


def tell(name: str, entry: dict[str, Any]) -> None:
    """Writes a figure: nothing that happens later takes it away."""
    sys.stdout.write(json.dumps({f"gpu_{name}": entry}) + "\n")
    sys.stdout.flush()


def accuracy(texts: Sequence[str]) -> None:
    """Tells what is there, and the least cosines to float32 of the library on the CPU."""
    from sentence_transformers import SentenceTransformer

    from services.embed.backends.loading import has_gpu
    from tests.unit.embed.harness import bundled_folder
    from tests.unit.embed.test_embed_hostile import POISON

    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"capability {torch.cuda.get_device_capability()}")  # fmt: skip
    tell("found_by_auto", figure(float(has_gpu()), 1.0, met=has_gpu()))
    chosen = [
        *random.Random(1).sample(list(texts), min(_SAMPLE, len(texts))),
        *POISON.values(),
        *(_SCRIPTS * times for times in (1, 20)),
        *(" ".join(["value"] * count) for count in _WORD_COUNTS),
    ]
    library = SentenceTransformer(str(bundled_folder()), device="cpu", local_files_only=True)
    exact = library.encode([text[:_REFERENCE_CHARS] for text in chosen], normalize_embeddings=True)
    for precision, goal in _COSINES.items():
        started = time.perf_counter()
        model = load(precision)
        tell(f"{precision}_load_seconds", figure(time.perf_counter() - started))
        facts = model.backend.info
        say(f"{precision}: padded {facts.padded}, graphs {facts.graphs}, "
            f"{torch.cuda.memory_reserved() >> 20} MiB reserved")  # fmt: skip
        if precision != "float32":
            tell(
                f"{precision}_unpadded", figure(float(not facts.padded), 1.0, met=not facts.padded)
            )
        rows = [ids_of(model, [text])[0] for text in chosen]
        together = _in_batches(model, rows, random.Random(2))
        _tell_cosine(f"{precision}_least_cosine", together, exact, goal)
        alone = np.concatenate([model.backend.infer([ids]) for ids in rows])
        _tell_cosine(f"{precision}_alone_to_together", together, alone, goal)
        again = _in_batches(model, rows, random.Random(2))
        tell(f"{precision}_same_again", figure(float(np.array_equal(again, together))))
        model.backend.close()
    padded = load("float16", attention="padded")
    found = _in_batches(padded, [ids_of(padded, [text])[0] for text in chosen], random.Random(2))
    _tell_cosine("padded_float16_least_cosine", found, exact, _COSINES["float16"])


def _in_batches(model: LoadedModel, rows: Sequence[TokenIds], chance: random.Random) -> Vectors:
    """Returns vectors of texts that run in batches of any size and order."""
    order = chance.sample(range(len(rows)), len(rows))
    found: Vectors = np.empty((len(rows), model.backend.info.dimensions), dtype=np.float32)
    while order:
        batch = [order.pop() for _ in range(min(len(order), chance.choice((1, 2, 5, 20, 90))))]
        found[batch] = model.backend.infer([rows[at] for at in batch])
    return found


def _tell_cosine(name: str, rows: Vectors, expected: Vectors, goal: float) -> None:
    from services.embed.canary import least_cosine

    least = least_cosine(rows, expected)
    tell(name, figure(least, goal, met=least >= goal, digits=7))


def rates(texts: Sequence[str]) -> None:
    """Tells texts a second of the library and ours in turns, and the GPU's share of time."""
    from sentence_transformers import SentenceTransformer

    from tests.unit.embed.harness import bundled_folder

    library = SentenceTransformer(str(bundled_folder()), device="cuda", local_files_only=True)
    library.half()
    model = load("float16")
    for kind, chosen in kinds_of(texts).items():

        def run_library(chosen: Sequence[str] = chosen) -> None:
            library.encode(list(chosen), batch_size=_LIBRARY_BATCH, normalize_embeddings=True)

        def run_ours(chosen: Sequence[str] = chosen) -> None:
            forward(model, batches_of(ids_of(model, chosen), model.backend.info.token_budget))

        slow, fast = in_turns(run_library, run_ours)
        tell(f"{kind}_library_texts_per_second", figure(len(chosen) / statistics.median(slow)))
        tell(f"{kind}_texts_per_second", figure(len(chosen) / statistics.median(fast)))
        ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
        tell(f"{kind}_to_library", figure(ratio, 1.0, met=ratio >= 1.0))
        ids = ids_of(model, chosen)
        batches = batches_of(ids, model.backend.info.token_budget)
        run = partial(forward, model, batches)
        seconds = statistics.median(_seconds(run) for _ in range(_ROUNDS))
        tell(f"{kind}_forward_texts_per_second", figure(len(chosen) / seconds))
        tell(f"{kind}_forward_tokens_per_second", figure(sum(map(len, ids)) / seconds))
        _tell_busy(f"{kind}_busy_share", run, seconds, _BUSY_GOAL)


def graphs(texts: Sequence[str]) -> None:
    """Tells rates with and without CUDA graphs, for texts one by one and in full batches."""
    model, plain = load("float16"), load("float16", graphs="off")
    tell("graphs", figure(model.backend.info.graphs))
    kinds = kinds_of(texts)
    for kind in ("short", "long"):
        for name, chosen, budget in (
            (f"one_{kind}", kinds[kind][:_ONE_BY_ONE], 1),
            (kind, kinds[kind], model.backend.info.token_budget),
        ):
            batches = batches_of(ids_of(model, chosen), budget)
            with_graphs = partial(forward, model, batches)
            without = partial(forward, plain, batches)
            slow, fast = in_turns(without, with_graphs)
            off, on = statistics.median(slow), statistics.median(fast)
            ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
            tell(f"graphs_{name}_texts_per_second", figure(len(chosen) / on))
            tell(f"no_graphs_{name}_texts_per_second", figure(len(chosen) / off))
            tell(f"graphs_{name}_to_none", figure(ratio, _NO_LOSS, met=ratio >= _NO_LOSS))
            _tell_busy(f"graphs_{name}_busy_share", with_graphs, on)
            _tell_busy(f"no_graphs_{name}_busy_share", without, off)


def service(texts: Sequence[str]) -> None:
    """Tells texts a second of the whole service over its socket, and the GPU's share of time."""
    import asyncio

    from tests.bench.embed_texts import measure_service, running_service

    async def run() -> None:
        async with running_service({"BACKEND": "torch"}, told=True) as running:
            for kind, chosen in kinds_of(texts).items():
                measure = partial(
                    measure_service,
                    running,
                    chosen,
                    texts_per_request=_TEXTS_PER_REQUEST,
                    requests_at_once=_REQUESTS_AT_ONCE,
                )
                await measure()
                with Utilization() as utilization:
                    of_rounds = [await measure() for _ in range(_ROUNDS)]
                rate = statistics.median(one.texts_per_second for one in of_rounds)
                tell(f"service_{kind}_texts_per_second", figure(rate))
                tokens = statistics.median(one.tokens_per_second for one in of_rounds)
                tell(f"service_{kind}_tokens_per_second", figure(tokens))
                if (share := utilization.share) is not None:
                    tell(f"service_{kind}_busy_share", figure(share))

    asyncio.run(run())


class Utilization:
    """Asks the driver how much of the time the GPU works; whole processes are seen by it alone."""

    def __init__(self) -> None:
        self._found: list[int] = []
        self._ended = False

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    @property
    def share(self) -> float | None:
        """Share of time without the slack at both ends; None where the driver does not tell."""
        inner = self._found[len(self._found) // 4 : -1]
        return statistics.mean(inner) / 100 if inner else None

    def _look(self) -> None:
        try:
            while not self._ended:
                self._found.append(torch.cuda.utilization())
                time.sleep(0.2)
        except Exception as error:  # noqa: BLE001 - the library for it may be missing
            say(f"the driver does not tell how busy it is: {error}")


def load(precision: str, *, attention: str = "auto", graphs: str = "auto") -> LoadedModel:
    """Returns the bundled model on the GPU."""
    from services.embed.backends.sentence_transformers import load_torch
    from tests.unit.embed.harness import bundled_folder

    return load_torch(
        bundled_folder(), precision=precision, attention=attention, graphs=graphs,
        token_budget=0, max_text_chars=1 << 20,
    )  # fmt: skip


def kinds_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """Returns short, long and mixed texts."""
    return {
        "short": [text[:_SHORT_CHARS] for text in texts],
        "long": [text for text in texts if len(text) > _LONG_CHARS],
        "mixed": list(texts),
    }


def ids_of(model: LoadedModel, texts: Sequence[str]) -> list[TokenIds]:
    """Returns the token ids of texts; each has some."""
    from services.embed.model import EncodedText, Truncation

    encoded = model.encoder.encode(texts, Truncation.END)
    return [item.ids for item in encoded if isinstance(item, EncodedText)]


def batches_of(rows: Sequence[TokenIds], budget: int) -> list[list[TokenIds]]:
    """Packs texts by length as the service does; one that has more tokens goes alone."""
    from services.embed.settings import EmbedSettings

    most = EmbedSettings().batch_max_texts
    batches: list[list[TokenIds]] = []
    tokens = 0
    for ids in sorted(rows, key=len):
        if not batches or tokens + len(ids) > budget or len(batches[-1]) == most:
            batches.append([])
            tokens = 0
        batches[-1].append(ids)
        tokens += len(ids)
    return batches


def forward(model: LoadedModel, batches: Sequence[Sequence[TokenIds]]) -> None:
    """Runs batches by as many threads as the backend takes."""
    with ThreadPoolExecutor(model.backend.info.concurrency) as threads:
        for _ in threads.map(model.backend.infer, batches):
            pass


def in_turns(slow: Callable[[], None], fast: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Returns the seconds of rounds that take turns, after one of each that warms up."""
    slow()
    fast()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        times[0].append(_seconds(slow))
        times[1].append(_seconds(fast))
    return times


def _seconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _tell_busy(
    name: str, run: Callable[[], None], seconds: float, goal: float | None = None
) -> None:
    """Tells the time that kernels and copies take, over that of a round without the profiler."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            _seconds(run)
        busy = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    except Exception as error:  # noqa: BLE001 - it wants more of a driver than a forward does
        say(f"the profiler does not run: {error}")
        return
    share = min(1.0, busy / seconds)
    if busy:
        tell(name, figure(share, goal, met=goal is None or share >= goal))


def main(part: str, texts: Path) -> int:
    """Runs a part; returns the exit status."""
    log.configure("bench", "info", "json")
    parts = {"accuracy": accuracy, "rates": rates, "graphs": graphs, "service": service}
    parts[part](json.loads(texts.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
