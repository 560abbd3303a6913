"""A provider of embeddings on loopback: the API of OpenAI's form, and faults in the order asked."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.model import EncodedText, Truncation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

Rows: TypeAlias = "npt.NDArray[np.float32]"
POISON = "detonate"
"""A word that texts may hold for the provider to fail on, where a test says how."""


@dataclass(frozen=True)
class Step:
    """How one request is answered."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    change: Callable[[dict[str, Any]], Any] = lambda message: message
    """Changes the message before it is written; bytes are written as they are."""
    cut_off: bool = False
    """Closes the connection without a word."""
    hang: bool = False
    """Says nothing until the test ends."""
    dribble: tuple[bytes, bytes] | None = None
    """How the answer begins, and what follows now and then, without an end."""


@dataclass
class EmbeddingsApi:
    """What the server does, and what it saw. Tests change it while it runs."""

    url: str = ""
    dimensions: int = 384
    takes_base64: bool = True
    steps: deque[Step] = field(default_factory=deque)
    """For the next requests; when it is empty they are answered as they should be."""
    always: Step | None = None
    for_poison: Step | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    arrived_at: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def step_for(self, request: dict[str, Any]) -> Step:
        """Returns how to answer a request."""
        if self.for_poison is not None and any(POISON in text for text in request["input"]):
            return self.for_poison
        if self.steps:
            return self.steps.popleft()
        return self.always or Step()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns what a provider that is well says: last text first, so that order is told."""
        texts = request["input"]
        rows = _rows(texts, request.get("dimensions", self.dimensions))
        wants_base64 = request["encoding_format"] == "base64"
        data = [
            {
                "object": "embedding",
                "index": at,
                "embedding": base64.b64encode(row.tobytes()).decode()
                if wants_base64
                else row.tolist(),
            }
            for at, row in enumerate(rows)
        ]
        tokens = sum(len(text.split()) for text in texts)
        return {"object": "list", "data": data[::-1], "usage": {"total_tokens": tokens}}


@contextmanager
def serving_embeddings() -> Iterator[EmbeddingsApi]:
    """Yields a provider that runs until the end of the block."""
    api = EmbeddingsApi()

    class Handler(_Handler):
        provider = api

    server = _QuietServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Says nothing: clients that hang up in the middle are what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits for the word that its headers came
    provider: EmbeddingsApi

    def do_POST(self) -> None:
        api = self.provider
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        api.requests.append(request)
        api.headers.append(dict(self.headers.items()))
        api.arrived_at.append(time.monotonic())
        step = api.step_for(request)
        if step.cut_off:
            self.close_connection = True
            return
        if step.hang:
            api.ended.wait()
            return
        if step.dribble is not None:
            self._dribble(*step.dribble)
            return
        if not api.takes_base64 and request["encoding_format"] == "base64":
            step = Step(status=400)
        self._write(step, self.path == "/v1/embeddings" and api.answer(request))

    def _write(self, step: Step, message: Any) -> None:
        changed = step.change(message) if step.status == 200 else {"error": {"message": "no"}}
        body = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        self.send_response(step.status)
        for name, value in step.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _dribble(self, first: bytes, then: bytes) -> None:
        self.wfile.write(first)
        while not self.provider.ended.wait(0.02):
            self.wfile.write(then)
            self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def _rows(texts: list[str], dimensions: int) -> Rows:
    encoded = HashingEncoder(max_text_chars=1 << 20).encode(texts, Truncation.END)
    ids = [item.ids for item in encoded if isinstance(item, EncodedText)]
    return HashingBackend(dimensions).infer(ids) * np.float32(3)
