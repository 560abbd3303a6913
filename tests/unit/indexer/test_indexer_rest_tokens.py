"""Tokens that hold what is left of a result."""

from __future__ import annotations

import base64
import json
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.rest_tokens import MOST_BYTES, MOST_ROWS, make_rest_token, read_rest_token
from services.runtime.errors import PageTokenError

_ROWS = st.lists(
    st.tuples(st.integers(0, (1 << 63) - 1), st.floats(0, 1e9, allow_nan=False)), max_size=50
)


@given(first=_ROWS, second=_ROWS, request=st.text())
def test_what_is_put_into_a_token_comes_out(
    first: list[tuple[int, float]], second: list[tuple[int, float]], request: str
) -> None:
    token = make_rest_token([first, second], request)

    assert read_rest_token(token, (2, 2), request) == [first, second]


def test_the_longest_token_is_read_again() -> None:
    """Of the longest numbers; a hundred workspaces left more rows than their token could hold."""
    numbers = random.Random(1)
    rows = [((1 << 63) - 1 - row, numbers.random() / 1e9) for row in range(MOST_ROWS)]

    token = make_rest_token([rows], "request")

    assert len(token) <= 4 << 20
    assert read_rest_token(token, (2,), "request") == [rows]


@given(st.text())
def test_any_text_is_a_token_or_refused_as_none(token: str) -> None:
    with pytest.raises(PageTokenError):
        read_rest_token(token, (2,), "request")


@given(st.recursive(st.none() | st.integers() | st.text() | st.floats(), st.lists, max_leaves=20))
def test_any_content_is_of_the_right_shape_or_refused(content: object) -> None:
    payload = json.dumps(["0", content]).encode()
    token = base64.urlsafe_b64encode(zlib.compress(payload)).decode()

    with pytest.raises(PageTokenError):
        read_rest_token(token, (2,), "request")


@pytest.mark.parametrize(
    "table", [[[1]], [[1, 2, 3]], [[-1, 2]], [["1", 2]], [[True, 2]], [[1 << 63, 1]], [[1e400, 1]]]
)
def test_rows_that_are_none_are_refused(table: list[list[float]]) -> None:
    token = make_rest_token([[tuple(row) for row in table]], "request")

    with pytest.raises(PageTokenError):
        read_rest_token(token, (2,), "request")


def test_a_small_token_that_grows_without_end_is_refused() -> None:
    """Planted once: without a limit it takes 80 MB."""
    bomb = zlib.compress(b" " * (MOST_BYTES * 20) + b"[]")

    with pytest.raises(PageTokenError):
        read_rest_token(base64.urlsafe_b64encode(bomb).decode(), (2,), "request")


def test_a_token_belongs_to_its_request() -> None:
    token = make_rest_token([[(1, 0.5)]], "one", "two")

    with pytest.raises(PageTokenError, match="another request"):
        read_rest_token(token, (2,), "one", "three")
