"""The hashing backend: deterministic vectors under which similar texts are near."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.embed.backends.hashing import HashingBackend, HashingEncoder
from services.embed.model import EncodedText, Truncation, Vectors
from tests.unit.embed.harness import ids_of


def _vector(text: str) -> Vectors:
    row: Vectors = HashingBackend().infer([ids_of(text)])[0]
    return row


def test_another_process_computes_the_same_vector() -> None:
    """Python salts its own hash per process; this one must not depend on it."""
    program = (
        "from tests.unit.embed.test_embed_hashing import _vector;"
        "import sys; sys.stdout.write(_vector('def add(a, b): return a + b').tobytes().hex())"
    )

    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert other.stdout.decode() == _vector("def add(a, b): return a + b").tobytes().hex()


def test_similar_texts_are_nearer_than_others() -> None:
    near = _vector("def read_file(path): return open(path).read()")
    same_words = _vector("def readFile(path):\n    return open(path).read()")
    other = _vector("SELECT name FROM users WHERE id = 7")

    assert near @ same_words > 0.6
    assert near @ other < 0.3


@given(st.text(max_size=300), st.sampled_from([8, 384, 1000]))
def test_every_text_has_a_vector_of_length_one(text: str, dimensions: int) -> None:
    (encoded,) = HashingEncoder(max_text_chars=1000).encode([text], Truncation.END)
    assert isinstance(encoded, EncodedText)

    vector = HashingBackend(dimensions).infer([encoded.ids])[0]

    assert vector.shape == (dimensions,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-5


def test_a_long_text_is_cut_at_the_end_that_may_go() -> None:
    encoder = HashingEncoder(max_text_chars=1 << 20, max_tokens=4)
    text = "one two three four five"

    (end,) = encoder.encode([text], Truncation.END)
    (start,) = encoder.encode([text], Truncation.START)

    assert isinstance(end, EncodedText)
    assert isinstance(start, EncodedText)
    assert end.ids.tolist() == ids_of("one two three").tolist()
    assert start.ids.tolist() == ids_of("three four five").tolist()
    assert end.shortened
    assert start.shortened
