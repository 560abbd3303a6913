"""An io service with a place to stop each call, and to send other answers than the right ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from services.io.servicers.parse import ParseServicer
from services.io.servicers.scan import ScanServicer
from services.io.servicers.snippets import SnippetServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    import pytest


class IoHook:
    """What happens to calls of a method, by its name: they are held up, or answered wrongly."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.spoil: dict[str, Callable[[Any], Iterable[Any]]] = {}
        """What is sent in place of each answer."""
        self.held = ""
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lets each io service that is started from now on, in this process, obey the hook."""
        for servicer in (_Parse, _Scan, _Snippets):
            hooked = type(servicer.__name__, (servicer,), {"hook": self})
            monkeypatch.setattr(f"services.io.app.{servicer.__bases__[0].__name__}", hooked)

    def hold(self, method: str) -> None:
        """Holds up calls of a method from now on; `reached` tells of the first."""
        self.held = method
        self.reached.clear()
        self.go_on.clear()

    async def before(self, method: str) -> None:
        """Runs before each call."""
        self.calls[method] += 1
        if method == self.held:
            self.reached.set()
            await self.go_on.wait()

    def sent(self, method: str, answer: Any) -> list[Any]:
        """Returns what to send in place of an answer."""
        spoil = self.spoil.get(method)
        return [answer] if spoil is None else list(spoil(answer))


class _Parse(ParseServicer):
    hook: IoHook

    async def ListLanguages(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self.hook.before("ListLanguages")
        return await super().ListLanguages(request, context)

    async def ParseFiles(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self.hook.before("ParseFiles")
        async for answer in super().ParseFiles(request, _context):
            for sent in self.hook.sent("ParseFiles", answer):
                yield sent


class _Scan(ScanServicer):
    hook: IoHook

    async def ScanTree(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self.hook.before("ScanTree")
        async for answer in super().ScanTree(request, _context):
            for sent in self.hook.sent("ScanTree", answer):
                yield sent


class _Snippets(SnippetServicer):
    hook: IoHook

    async def ReadContents(self, request: Any, _context: Any) -> Any:  # noqa: N802
        await self.hook.before("ReadContents")
        (sent,) = self.hook.sent("ReadContents", await super().ReadContents(request, _context))
        return sent

    async def ReadSnippets(self, request: Any, _context: Any) -> Any:  # noqa: N802
        await self.hook.before("ReadSnippets")
        (sent,) = self.hook.sent("ReadSnippets", await super().ReadSnippets(request, _context))
        return sent
