"""The tokenizer: the ids of the transformers library, cut as asked, in bounded time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from services.embed.errors import BadVectorError, TextTooLongError
from services.embed.model import EncodedText, Truncation
from services.embed.tokenizer import ModelTokenizer
from services.runtime.errors import InvalidRequestError
from tests.unit.embed.harness import bundled_folder

SHORT = "def add(a, b):\n    return a + b"
LONG = "\n".join(f"def function_{n}(argument): return argument * {n}" for n in range(200))
POISON = [
    "",
    "\0",
    "a\0b",
    " " * 5000,
    "\n\n\t",
    "\ufeffimport os",
    "<|endoftext|> [CLS] [SEP] [PAD] [MASK]",
    "x" * 5000,
    "🎉" * 3000,
    "e\u0301" * 2000,
    "古いファイルを削除する。Удаляет старые файлы.",
    "\u202e\u200b\u2028",
    "((((" * 3000,
]


@pytest.fixture(scope="module")
def tokenizer() -> ModelTokenizer:
    raw = Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))
    return ModelTokenizer(raw, max_tokens=256, max_text_chars=1 << 20)


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(bundled_folder()), local_files_only=True)


def _one(tokenizer: ModelTokenizer, text: str, truncation: Truncation) -> EncodedText:
    (encoded,) = tokenizer.encode([text], truncation)
    assert isinstance(encoded, EncodedText)
    return encoded


@pytest.mark.slow
@pytest.mark.parametrize("text", [SHORT, LONG, *POISON])
@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
def test_ids_are_those_of_the_transformers_tokenizer(
    tokenizer: ModelTokenizer, reference: Any, text: str, truncation: Truncation
) -> None:
    reference.truncation_side = "left" if truncation is Truncation.START else "right"
    whole = reference([text])["input_ids"][0]
    expected = reference([text], truncation=True, max_length=256)["input_ids"][0]

    encoded = _one(tokenizer, text, truncation)

    assert encoded.ids.tolist() == expected
    assert encoded.shortened == (len(whole) > 256)


def test_a_text_that_may_not_be_cut_fails_alone_and_tells_its_length(
    tokenizer: ModelTokenizer,
) -> None:
    short, long = tokenizer.encode([SHORT, LONG], Truncation.ERROR)

    assert isinstance(short, EncodedText)
    assert isinstance(long, TextTooLongError)
    assert int(long.metadata["tokens"]) > int(long.metadata["limit"]) == 256


@pytest.mark.parametrize("length", range(250, 262))
def test_a_text_is_shortened_only_above_the_limit(tokenizer: ModelTokenizer, length: int) -> None:
    text = "word " * (length - 2)

    encoded = _one(tokenizer, text, Truncation.END)

    assert len(encoded.ids) == min(length, 256)
    assert encoded.shortened == (length > 256)


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
def test_a_prompt_stands_before_what_is_left_of_a_text(
    tokenizer: ModelTokenizer, truncation: Truncation
) -> None:
    """Red when a cut of the start takes the prompt away, without which the vector is another."""
    prompt = "search_query: "
    before = _one(tokenizer, prompt, Truncation.ERROR).ids[1:-1].tolist()
    whole = _one(tokenizer, prompt + SHORT, Truncation.ERROR).ids.tolist()
    words = " ".join(f"word{number}" for number in range(1000))
    cut = slice(-250 + len(before), None) if truncation is Truncation.START else slice(0, 240)
    kept = _one(tokenizer, words, truncation).ids[1:-1][cut].tolist()

    short, long = tokenizer.encode([SHORT, words], truncation, "", prompt)

    assert isinstance(short, EncodedText)
    assert isinstance(long, EncodedText)
    assert short.ids.tolist() == whole
    assert (short.shortened, long.shortened) == (False, True)
    assert len(long.ids) == 256
    body = long.ids[1:-1].tolist()
    assert body[: len(before)] == before
    left = body[len(before) :]
    assert (left[-len(kept) :] if truncation is Truncation.START else left[: len(kept)]) == kept


def test_a_prompt_that_fills_the_model_leaves_no_room(tokenizer: ModelTokenizer) -> None:
    (found,) = tokenizer.encode(["text"], Truncation.START, "", "prompt " * 300)

    assert isinstance(found, EncodedText)
    assert len(found.ids) == 256
    assert found.shortened


def test_a_lone_surrogate_fails_alone(tokenizer: ModelTokenizer) -> None:
    bad, good = tokenizer.encode(["\ud800", SHORT], Truncation.END)

    assert isinstance(bad, InvalidRequestError)
    assert isinstance(good, EncodedText)


def test_a_text_that_the_tokenizer_fails_on_fails_alone_and_is_not_quoted() -> None:
    """A real one without a token for what it does not know. Red when all texts of a call fail."""
    raw = Tokenizer(Unigram([("a", -1.0), ("b", -2.0)]))
    tokenizer = ModelTokenizer(raw, max_tokens=256, max_text_chars=1000)

    good, bad, other = tokenizer.encode(["ab", "aзb", "ba"], Truncation.END)

    assert isinstance(good, EncodedText)
    assert isinstance(bad, BadVectorError)
    assert "з" not in bad.message
    assert isinstance(other, EncodedText)
    assert other.ids.tolist() == good.ids[::-1].tolist()


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
def test_a_line_of_50_megabytes_costs_what_its_first_tokens_cost(
    tokenizer: ModelTokenizer, truncation: Truncation
) -> None:
    """Tokenizing it whole takes many seconds."""
    line = "value = compute(value) + 1; " * (50 * 2**20 // 28)
    started = time.monotonic()

    encoded = _one(tokenizer, line, truncation)

    assert encoded.shortened
    assert len(encoded.ids) == 256
    assert time.monotonic() - started < 2


def test_code_after_much_empty_space_is_read(tokenizer: ModelTokenizer) -> None:
    """A cut by characters alone would embed the space and lose the code."""
    padded = " " * 50_000 + SHORT

    assert _one(tokenizer, padded, Truncation.END).ids.tolist() == (
        _one(tokenizer, SHORT, Truncation.END).ids.tolist()
    )


def test_a_long_look_gives_the_ids_of_the_whole_text(tokenizer: ModelTokenizer) -> None:
    """A text is first looked at in part; the part's seam must not reach what is kept."""
    text = "supercalifragilistic" * 600 + " " + LONG

    assert _one(tokenizer, text, Truncation.END).ids[:3].tolist() == (
        _one(tokenizer, text[:30_000], Truncation.END).ids[:3].tolist()
    )
    spaced = ("x" * 90 + "    ") * 400
    raw = Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    whole = raw.encode(spaced).ids
    assert _one(tokenizer, spaced, Truncation.END).ids.tolist() == [*whole[:255], whole[-1]]
