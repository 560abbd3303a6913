"""Page tokens hold a position, and belong to one request."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.pages import make_token, page_size, read_token
from services.runtime.errors import PageTokenError

_POSITIONS = st.one_of(
    st.integers(0, 1 << 60),
    st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)


@given(position=_POSITIONS, request=st.text())
def test_a_token_gives_its_position_back(position: Any, request: str) -> None:
    assert read_token(make_token(position, request), request, start=type(position)()) == position


def test_no_token_is_the_start() -> None:
    assert read_token("", "request", start=7) == 7


def test_a_token_of_another_request_is_refused() -> None:
    with pytest.raises(PageTokenError, match="another request"):
        read_token(make_token(3, "one"), "two", start=0)


@pytest.mark.parametrize(
    "token", ["x", "!!!", "AAAA", "ä", base64.urlsafe_b64encode(b"[" * 100_000).decode()]
)
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(PageTokenError):
        read_token(token, "request", start=0)


@pytest.mark.parametrize(
    ("position", "start"),
    [
        ("x", 0),
        (True, 0),
        (-1, 0),
        (1 << 70, 0),
        (3, ""),
        ("\0", ""),
        ("\ud800", ""),
        (["a", "b"], ["", "", 0]),
        (["a", 1, 0], ["", "", 0]),
        ({}, 0),
        (None, ""),
    ],
)
def test_a_forged_position_is_refused(position: Any, start: Any) -> None:
    """The digest is no secret, so whatever stands in a token is looked at."""
    good = json.loads(base64.urlsafe_b64decode(make_token(0, "request")))
    forged = base64.urlsafe_b64encode(json.dumps([position, good[1]]).encode()).decode()

    with pytest.raises(PageTokenError):
        read_token(forged, "request", start=start)


@pytest.mark.parametrize(("asked", "given_size"), [(0, 50), (7, 7), (1_000_000, 1000)])
def test_pages_have_a_largest_size(asked: int, given_size: int) -> None:
    assert page_size(asked) == given_size
