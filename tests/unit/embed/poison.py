"""A hashing model that ends, hangs, breaks or finds no memory on a word; for engines in a process.

The process that runs the model imports this module with the source that it is given, and so gets
the poisoned backend; nowhere else is anything changed. Its number of CUDA graphs is the process's
id: each engine has another.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.model import Truncation
from services.embed.sources import HashingSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.embed.model import TokenIds, Vectors

DIES = "dieplease"
HANGS = "hangplease"
MOST_TOKENS = 48
"""Padded tokens for which a poisoned engine has memory, where the text says so."""
GREEDY = "greedyplease"
HEAVY = "heavyplease"
"""Ends an engine that has it in a batch of more than twice that, as a kernel does which has no
memory left."""
EXHAUSTS = "exhaustplease"
"""After a text with this word an engine has no memory for anything."""
BREAKS = "breakplease"
"""After a text with this word an engine raises on everything, as CUDA does after an assert."""
SPOILS = "spoilplease"
"""After a text with this word an engine gives no number that is one."""
SPOILED = "TEST_EMBED_SPOILED"
"""A variable of the environment under which an engine has been spoilt from the start."""
GARBLES = "garbleplease"
"""At a text with this word something in the process writes where the engine's answers go."""


@dataclass(frozen=True, slots=True)
class PoisonedSource(HashingSource):
    """Names this module, so that unpacking it imports it."""


def _id_of(word: str) -> int:
    (encoded,) = HashingEncoder(max_text_chars=100).encode([word], Truncation.END)
    return int(encoded.ids[1])  # type: ignore[union-attr]


def _poison() -> None:
    plain = HashingBackend.infer
    words = (DIES, HANGS, GREEDY, HEAVY, EXHAUSTS, BREAKS, SPOILS, GARBLES)
    dies, hangs, greedy, heavy, exhausts, breaks, spoils, garbles = map(_id_of, words)
    lasting = {exhausts, breaks, spoils}
    seen: set[int] = {spoils} if SPOILED in os.environ else set()

    def infer(self: HashingBackend, batch: Sequence[TokenIds], _route: str = "") -> Vectors:
        for ids in batch:
            if dies in ids:
                os._exit(9)
            if hangs in ids:
                threading.Event().wait()
            if garbles in ids:
                os.write(int(sys.argv[1]), b"\x05\xff\xff\0\0\0\0\0\0")
            padded = max(map(len, batch)) * len(batch)
            if greedy in ids and padded > MOST_TOKENS:
                raise MemoryError
            if heavy in ids and padded > 2 * MOST_TOKENS:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.update(lasting.intersection(ids.tolist()))
        if exhausts in seen:
            raise MemoryError
        if breaks in seen:
            raise RuntimeError("device-side assert triggered")
        return plain(self, batch) * (float("nan") if spoils in seen else 1)

    info = property(lambda self: replace(self._info, graphs=os.getpid()))
    HashingBackend.infer = infer  # type: ignore[method-assign]
    HashingBackend.info = info  # type: ignore[method-assign,assignment]


_main = sys.modules["__main__"].__spec__
if _main is not None and _main.name == "services.embed.hosting.child":
    _poison()
