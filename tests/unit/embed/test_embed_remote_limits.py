"""Limits, circuit, retries, texts and keys of remote models, each by itself."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embed.backends.remote.circuit import Circuit, CircuitOpenError
from services.embed.backends.remote.key_file import KeyFile, KeyFileError
from services.embed.backends.remote.rate_limit import RateLimit, WaitTooLongError
from services.embed.backends.remote.retrying import (
    RetryBudget,
    backoff_seconds,
    retry_after_seconds,
)
from services.embed.backends.remote.texts import BYTES_PER_ID, Utf8Encoder, text_of
from services.embed.errors import TextTooLongError
from services.embed.model import EncodedText, Truncation
from services.runtime.errors import InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path


class _Clock:
    """Shows the time that the test says it is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _limit(clock: _Clock, requests: int = 0, tokens: int = 0) -> RateLimit:
    return RateLimit(requests_per_minute=requests, tokens_per_minute=tokens, clock=clock)


@pytest.mark.parametrize("seed", range(5))
def test_no_minute_sees_more_than_its_allowance(seed: int) -> None:
    """Red when a bucket holds a whole minute's allowance: the first minute sees nearly twice."""
    chance = random.Random(seed)
    clock, limit_tokens, limit_requests = _Clock(), 10_000, 100
    limit = _limit(clock, limit_requests, limit_tokens)
    sent: list[tuple[float, int]] = []
    for _ in range(1500):
        tokens = chance.randrange(1, 1000)
        clock.now += limit.reserve(tokens, longest_wait_seconds=1e9)
        sent.append((clock.now, tokens))
        if chance.random() < 0.01:
            clock.now += chance.random() * 200

    for at, (start, _) in enumerate(sent):
        minute = [tokens for when, tokens in sent[at : at + 200] if when < start + 60]
        assert len(minute) <= limit_requests + 1
        assert sum(minute) <= limit_tokens + 1


def test_a_steady_flow_uses_most_of_the_allowance() -> None:
    clock = _Clock()
    limit = _limit(clock, tokens=6000)
    start = clock.now
    for _ in range(1000):
        clock.now += limit.reserve(60, longest_wait_seconds=1e9)

    assert 1000 * 60 / (clock.now - start) * 60 > 0.88 * 6000


def test_a_request_larger_than_the_bucket_goes_when_it_is_full() -> None:
    clock = _Clock()
    limit = _limit(clock, tokens=600)

    assert limit.reserve(500, longest_wait_seconds=0) == 0
    assert limit.reserve(1, longest_wait_seconds=1e9) == pytest.approx(441 / 9)


def test_a_wait_beyond_what_is_allowed_takes_nothing() -> None:
    clock = _Clock()
    limit = _limit(clock, requests=1)
    limit.reserve(1, longest_wait_seconds=0)

    for _ in range(3):
        with pytest.raises(WaitTooLongError) as error:
            limit.reserve(1, longest_wait_seconds=10)
        assert error.value.seconds == pytest.approx(60)


def test_what_was_not_used_is_given_back() -> None:
    clock = _Clock()
    limit = _limit(clock, tokens=6000)
    limit.reserve(600, longest_wait_seconds=0)

    limit.correct(reserved=600, used=100)

    assert limit.reserve(500, longest_wait_seconds=0) == 0


def test_a_hold_of_the_provider_holds_everybody_and_never_shrinks() -> None:
    clock = _Clock()
    limit = _limit(clock)
    limit.hold(30)
    limit.hold(5)

    assert limit.reserve(1, longest_wait_seconds=60) == pytest.approx(30)
    clock.now += 30
    assert limit.reserve(1, longest_wait_seconds=60) == 0


def test_a_circuit_opens_after_failures_in_a_row_alone() -> None:
    circuit = Circuit(failures_to_open=3, open_seconds=10, clock=_Clock())
    for _ in range(10):
        circuit.failed(2)
        circuit.succeeded()
    circuit.enter()

    circuit.failed(3)

    with pytest.raises(CircuitOpenError) as error:
        circuit.enter()
    assert error.value.retry_after_seconds == pytest.approx(10)


def test_an_open_circuit_lets_one_request_try_at_a_time() -> None:
    """Red when the one that tries does not move the next try: all that wait rush in."""
    clock = _Clock()
    circuit = Circuit(failures_to_open=1, open_seconds=10, clock=clock)
    circuit.failed()
    clock.now += 10

    circuit.enter()
    with pytest.raises(CircuitOpenError):
        circuit.enter()
    clock.now += 10  # the one that tried never told how it ended
    circuit.enter()
    circuit.succeeded()

    circuit.enter()
    circuit.enter()


def test_a_provider_that_fails_gets_little_more_load_than_one_that_is_well() -> None:
    budget = RetryBudget()
    retries = 0
    for _ in range(1000):
        budget.note_request()
        retries += sum(budget.spend() for _ in range(3))

    assert 190 <= retries <= 215


def test_waits_double_within_bounds_and_are_spread() -> None:
    assert [backoff_seconds(n, jitter=lambda: 1.0) for n in (1, 2, 3, 20)] == [0.25, 0.5, 1.0, 8.0]
    assert backoff_seconds(1, jitter=lambda: 0.0) == 0.125


def test_retry_after_is_seconds_or_a_date_by_the_senders_own_clock() -> None:
    """Red when the local wall clock is asked: an hour of difference becomes an hour of waiting."""
    there = datetime.now(UTC) + timedelta(hours=5)
    date = format_datetime(there, usegmt=True)
    later = format_datetime(there + timedelta(seconds=7), usegmt=True)

    assert retry_after_seconds("12", sent_at=None) == 12
    assert retry_after_seconds(later, sent_at=date) == 7
    assert retry_after_seconds(date, sent_at=later) == 0
    assert retry_after_seconds("9" * 400, sent_at=None) == 3600
    year = f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"
    zone = f"Wed, 21 Oct 2026 07:28:00 +{'9' * 15}"
    for nonsense in (None, "", "soon", "-5", "1e9", "Mon, 99 Foo 2026", year, zone):
        assert retry_after_seconds(nonsense, sent_at=date) is None
        assert retry_after_seconds("12", sent_at=nonsense) == 12
        assert retry_after_seconds(date, sent_at=nonsense) is not None


@given(st.text(max_size=60))
def test_ids_hold_the_very_text(text: str) -> None:
    encoder = Utf8Encoder(max_tokens=1000, max_text_chars=1 << 20)
    (encoded,) = encoder.encode([text], Truncation.ERROR)

    assert isinstance(encoded, EncodedText)
    assert text_of(encoded.ids) == (text or " ")
    assert len(encoded.ids) == max(1, -(-len(text.encode()) // BYTES_PER_ID))
    assert encoded.ids.dtype == np.int64


@given(st.text(min_size=1, max_size=80), st.integers(1, 8))
def test_cuts_keep_whole_characters_of_the_right_end(text: str, room: int) -> None:
    encoder = Utf8Encoder(max_tokens=room, max_text_chars=50)
    (end,) = encoder.encode([text], Truncation.END)
    (start,) = encoder.encode([text], Truncation.START)
    (strict,) = encoder.encode([text], Truncation.ERROR)

    assert isinstance(end, EncodedText)
    assert isinstance(start, EncodedText)
    assert text.startswith(text_of(end.ids).rstrip(" ") or "")
    assert text.endswith(text_of(start.ids).lstrip(" ") or "")
    assert max(len(end.ids), len(start.ids)) <= room
    fits = len(text) <= 50 and len(text.encode()) <= room * BYTES_PER_ID
    assert end.shortened is start.shortened is not fits
    assert isinstance(strict, EncodedText if fits else TextTooLongError)


@given(st.text(max_size=80), st.text(max_size=20), st.integers(1, 20))
def test_a_cut_of_the_start_keeps_the_prompt(text: str, prompt: str, room: int) -> None:
    """Red when the prompt is cut off with the start, without which the vector is another."""
    encoder = Utf8Encoder(max_tokens=room, max_text_chars=1000)
    (found,) = encoder.encode([text], Truncation.START, "", prompt)

    assert isinstance(found, EncodedText)
    fits = len((prompt + text).encode()) <= room * BYTES_PER_ID
    assert found.shortened is not fits
    told = text_of(found.ids)
    if fits:
        assert told == (prompt + text or " ")
    elif len(prompt.encode()) < room * BYTES_PER_ID:
        assert told.startswith(prompt)
        left = told.removeprefix(prompt)
        assert text.endswith(left) or told == " "  # for no text at all a blank is sent
    assert len(found.ids) <= room


def test_a_lone_surrogate_fails_alone() -> None:
    encoder = Utf8Encoder(max_tokens=10, max_text_chars=100)

    bad, good = encoder.encode(["\ud800", "x"], Truncation.END)

    assert isinstance(bad, InvalidRequestError)
    assert isinstance(good, EncodedText)


def test_a_key_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text("first-key\n")
    key = KeyFile(path)
    assert key.read() == "first-key"

    replacement = tmp_path / "new"
    replacement.touch(0o600)
    replacement.write_text("other-key")
    replacement.replace(path)

    assert key.read() == "other-key"
    assert "other-key" not in repr(key)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text("secret-key")
    path.chmod(mode)

    with pytest.raises(KeyFileError, match="chmod") as error:
        KeyFile(path).read()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\n", b"two words", b"a\nb", b"\xff\xfe", b"k" * 9000])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(data)

    with pytest.raises(KeyFileError):
        KeyFile(path).read()
