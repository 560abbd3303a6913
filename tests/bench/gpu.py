"""`make bench-gpu`: torch without padding against sentence-transformers on a GPU, both in float16.

CUDA graphs are compared with ordinary forwards as well, for texts one by one and in full batches.

The last line is JSON. Without a CUDA device it is `{}`, and the exit status 77, by which test
runners know what was skipped; `make` takes that for well. Rates are of whole calls, texts in and
vectors out; the share of time that the GPU works comes from a round of its own under the profiler.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests.bench.figures import figure, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.embed.backends.protocol import LoadedModel

NOTHING_MEASURED = 77
"""Exit status where there is no CUDA device; automake's for a skipped test."""
_TEXTS = 8192
_ROUNDS = 7
_LIBRARY_BATCH = 256
_SHORT_CHARS = 160
_BUSY_GOAL = 0.9
_LONG_CHARS = 900
_ONE_BY_ONE = 512
"""Texts of the rounds in which each is a batch, as a user's query is."""
_NO_LOSS = 0.98
"""What graphs must come to at least: those that do not win are not used."""


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """Returns rates, their ratio and the GPU's share of time, for short, long and mixed texts."""
    if not torch.cuda.is_available():
        say("There is no CUDA device: nothing is measured.")
        return {}
    # Imported here: they take seconds, and are no use where there is nothing to measure.
    from sentence_transformers import SentenceTransformer

    from services.embed.backends.sentence_transformers import load_torch
    from tests.bench.corpus import cached_texts
    from tests.unit.embed.harness import bundled_folder

    library = SentenceTransformer(str(bundled_folder()), device="cuda", local_files_only=True)
    library.half()
    model, plain = (
        load_torch(
            bundled_folder(), precision="float16", attention="auto", token_budget=0,
            max_text_chars=1 << 20, graphs=graphs,
        )
        for graphs in ("auto", "off")
    )  # fmt: skip
    facts = model.backend.info
    say(f"{torch.cuda.get_device_name()}; without padding: {not facts.padded}")
    say(f"sizes of batches that are replayed: {facts.graphs}")
    texts = cached_texts(scratch, _TEXTS)
    kinds = {
        "short": [text[:_SHORT_CHARS] for text in texts],
        "long": [text for text in texts if len(text) > _LONG_CHARS],
        "mixed": texts,
    }
    results: dict[str, dict[str, Any]] = {}
    for kind, chosen in kinds.items():
        results |= _compare(kind, chosen, library, model)
    for kind in ("short", "long"):
        results |= _compare_graphs(f"one_{kind}", kinds[kind][:_ONE_BY_ONE], model, plain, 1)
        results |= _compare_graphs(kind, kinds[kind], model, plain, facts.token_budget)
    return results | {"gpu_graphs": figure(facts.graphs)}


def _compare(
    kind: str, texts: Sequence[str], library: Any, model: LoadedModel
) -> dict[str, dict[str, Any]]:
    def run_library() -> None:
        library.encode(list(texts), batch_size=_LIBRARY_BATCH, normalize_embeddings=True)

    def run_ours() -> None:
        _embed_all(texts, model, model.backend.info.token_budget)

    run_library()
    run_ours()
    times: dict[str, list[float]] = {"library": [], "ours": []}
    for _ in range(_ROUNDS):
        times["library"].append(_seconds(run_library))
        times["ours"].append(_seconds(run_ours))
    ratio = statistics.median(
        slow / fast for slow, fast in zip(times["library"], times["ours"], strict=True)
    )
    rates = {name: len(texts) / statistics.median(values) for name, values in times.items()}
    say(f"{kind}: library {rates['library']:.0f}/s, ours {rates['ours']:.0f}/s, {ratio:.2f} times")
    busy = _busy_share(run_ours)
    return {
        f"gpu_{kind}_library_texts_per_second": figure(rates["library"]),
        f"gpu_{kind}_texts_per_second": figure(rates["ours"]),
        f"gpu_{kind}_to_library": figure(ratio, 1.0, met=ratio >= 1.0),
        f"gpu_{kind}_busy_share": figure(busy, _BUSY_GOAL, met=busy >= _BUSY_GOAL),
    }


def _compare_graphs(
    kind: str, texts: Sequence[str], model: LoadedModel, plain: LoadedModel, budget: int
) -> dict[str, dict[str, Any]]:
    """Returns rates with and without graphs in batches of so many tokens, turn by turn."""

    def run_graphs() -> None:
        _embed_all(texts, model, budget)

    def run_plain() -> None:
        _embed_all(texts, plain, budget)

    run_plain()
    run_graphs()
    slow, fast = [], []
    for _ in range(_ROUNDS):
        slow.append(_seconds(run_plain))
        fast.append(_seconds(run_graphs))
    ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    on, off = (len(texts) / statistics.median(times) for times in (fast, slow))
    say(f"{kind}: with graphs {on:.0f}/s, without {off:.0f}/s, {ratio:.2f} times")
    return {
        f"gpu_graphs_{kind}_texts_per_second": figure(on),
        f"gpu_no_graphs_{kind}_texts_per_second": figure(off),
        f"gpu_graphs_{kind}_to_none": figure(ratio, _NO_LOSS, met=ratio >= _NO_LOSS),
        f"gpu_graphs_{kind}_busy_share": figure(_busy_share(run_graphs)),
        f"gpu_no_graphs_{kind}_busy_share": figure(_busy_share(run_plain)),
    }


def _embed_all(texts: Sequence[str], model: LoadedModel, budget: int) -> None:
    """Tokenizes and packs as the service does, and runs every batch of at most so many tokens.

    A text that has more goes alone.
    """
    from services.embed.model import EncodedText, Truncation

    encoded = model.encoder.encode(texts, Truncation.END)
    rows = sorted((item.ids for item in encoded if isinstance(item, EncodedText)), key=len)
    batch: list[Any] = []
    tokens = 0
    for ids in rows:
        if batch and tokens + len(ids) > budget:
            model.backend.infer(batch)
            batch, tokens = [], 0
        batch.append(ids)
        tokens += len(ids)
    model.backend.infer(batch)


def _seconds(run: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _busy_share(run: Callable[[], None]) -> float:
    """Returns the time that kernels and copies run, over the time of the whole call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds = _seconds(run)
    busy: float = sum(event.self_device_time_total for event in profile.key_averages())
    return busy / 1e6 / seconds


def main() -> int:
    """Measures and ends with one line of JSON; returns the exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(Path(scratch))
    sys.stdout.write(json.dumps(results) + "\n")
    return 0 if results else NOTHING_MEASURED


if __name__ == "__main__":
    sys.exit(main())
