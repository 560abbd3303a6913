"""`make bench-gpu`: torch without padding against sentence-transformers on a GPU, both in float16.

The last line is JSON; without a CUDA device it is `{}`. Rates are of whole calls, texts in and
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

_TEXTS = 8192
_ROUNDS = 5
_LIBRARY_BATCH = 256
_SHORT_CHARS = 160
_LONG_CHARS = 900


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
    model = load_torch(
        bundled_folder(), precision="float16", attention="auto", token_budget=0,
        max_text_chars=1 << 20,
    )  # fmt: skip
    say(f"{torch.cuda.get_device_name()}; without padding: {not model.backend.info.padded}")
    texts = cached_texts(scratch, _TEXTS)
    kinds = {
        "short": [text[:_SHORT_CHARS] for text in texts],
        "long": [text for text in texts if len(text) > _LONG_CHARS],
        "mixed": texts,
    }
    results: dict[str, dict[str, Any]] = {}
    for kind, chosen in kinds.items():
        results |= _compare(kind, chosen, library, model)
    return results


def _compare(
    kind: str, texts: Sequence[str], library: Any, model: LoadedModel
) -> dict[str, dict[str, Any]]:
    def run_library() -> None:
        library.encode(list(texts), batch_size=_LIBRARY_BATCH, normalize_embeddings=True)

    def run_ours() -> None:
        _embed_all(texts, model)

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
    return {
        f"gpu_{kind}_library_texts_per_second": figure(rates["library"]),
        f"gpu_{kind}_texts_per_second": figure(rates["ours"]),
        f"gpu_{kind}_to_library": figure(ratio, 1.0, met=ratio >= 1.0),
        f"gpu_{kind}_busy_share": figure(_busy_share(run_ours)),
    }


def _embed_all(texts: Sequence[str], model: LoadedModel) -> None:
    """Tokenizes and packs as the service does, and runs every batch."""
    from services.embed.model import EncodedText, Truncation

    encoded = model.encoder.encode(texts, Truncation.END)
    rows = sorted((item.ids for item in encoded if isinstance(item, EncodedText)), key=len)
    budget = model.backend.info.token_budget
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


def main() -> None:
    """Measures and ends with one line of JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(measure(Path(scratch))) + "\n")


if __name__ == "__main__":
    main()
