"""Sizes of pages."""

from __future__ import annotations

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


def page_size(asked: int) -> int:
    """Returns the size of a page: what was asked for, within bounds."""
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
