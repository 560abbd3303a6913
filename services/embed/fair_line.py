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
    have. One alone gets everything, in order of arrival. An item that several want stands in the
    line of each, and goes in the first turn that comes to it.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, dict[int, ItemT]] = OrderedDict()
        self._credits: dict[Hashable, int] = {}
        self._shared: dict[int, list[Hashable]] = {}
        """By serial number, the other callers in whose lines an item stands."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: ItemT) -> None:
        """Puts an item behind the others of its caller."""
        self._stand(item.caller, item)
        self._count += 1

    def share(self, item: ItemT, caller: Hashable) -> None:
        """Puts an item that still stands in line into the line of another caller as well."""
        if item.serial in self._lines.get(item.caller, {}) and caller != item.caller:
            self._stand(caller, item)
            self._shared.setdefault(item.serial, []).append(caller)

    def discard(self, item: ItemT) -> bool:
        """Removes an item; returns whether it was there."""
        if item.serial not in self._lines.get(item.caller, {}):
            return False
        for caller in {item.caller, *self._shared.pop(item.serial, ())}:
            self._lines[caller].pop(item.serial)
            if not self._lines[caller]:
                self._leave(caller)
        self._count -= 1
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

    def _stand(self, caller: Hashable, item: ItemT) -> None:
        if caller not in self._lines:
            self._lines[caller] = {}
            self._credits[caller] = _QUANTUM_TOKENS
        self._lines[caller][item.serial] = item

    def _leave(self, caller: Hashable) -> None:
        """Forgets a caller without items; it saves up no credit."""
        del self._lines[caller]
        del self._credits[caller]
