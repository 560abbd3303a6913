"""Items of several callers in one line: callers take turns by tokens."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

_QUANTUM_TOKENS = 1024
"""Tokens of a turn: some texts of one caller, so that those of a length still find each other."""


class Claimed(Protocol):
    """What stands in line: a length in tokens, a unique serial number, and who wants it."""

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        ...

    @property
    def serial(self) -> int:
        """Order of arrival."""
        ...

    @property
    def caller(self) -> Hashable:
        """Whoever asked for it."""
        ...


ItemT = TypeVar("ItemT", bound=Claimed)


class FairLine(Generic[ItemT]):
    """Deficit round robin (Shreedhar, Varghese 1995) over callers; one caller's items in order.

    A caller that has little to do waits for a turn of each of the others, and not for all that they
    have. One alone gets everything, in order of arrival.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, dict[int, ItemT]] = OrderedDict()
        self._credits: dict[Hashable, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: ItemT) -> None:
        """Puts an item behind the others of its caller."""
        if item.caller not in self._lines:
            self._lines[item.caller] = {}
            self._credits[item.caller] = _QUANTUM_TOKENS
        self._lines[item.caller][item.serial] = item
        self._count += 1

    def discard(self, item: ItemT) -> bool:
        """Removes an item; returns whether it was there."""
        line = self._lines.get(item.caller, {})
        if line.pop(item.serial, None) is None:
            return False
        self._count -= 1
        if not line:
            self._leave(item.caller)
        return True

    def pop(self) -> ItemT:
        """Removes and returns the next item; there is one."""
        while True:
            caller, line = next(iter(self._lines.items()))
            item = next(iter(line.values()))
            if len(self._lines) == 1 or self._credits[caller] >= item.tokens:
                self._credits[caller] = max(0, self._credits[caller] - item.tokens)
                self.discard(item)
                return item
            self._credits[caller] += _QUANTUM_TOKENS
            self._lines.move_to_end(caller)

    def _leave(self, caller: Hashable) -> None:
        """Forgets a caller without items; it saves up no credit."""
        del self._lines[caller]
        del self._credits[caller]
