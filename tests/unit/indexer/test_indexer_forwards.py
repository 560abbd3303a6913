"""What is sent again, and what is blamed for a call that failed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from services.indexer import forwards as resending
from services.indexer import patience
from services.indexer.embed_client import Vector
from services.indexer.forwards import ForwardGate, Forwards
from services.indexer.model import EmbedModel, Failure
from services.indexer.patience import Patience
from services.runtime.errors import DependencyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.timeout(30)
MODEL = EmbedModel("models/m", "f", 4, 512, 256)
AWAY = Failure("ERROR_REASON_DEPENDENCY_UNAVAILABLE", "The model is being loaded again.", True)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent again is looked at here, not how long it waits before."""
    monkeypatch.setattr(patience, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(resending, "_PARTLY_AWAY_SECONDS", 0.01)


def vector(text: str) -> Vector:
    return Vector(text.encode(), 1, truncated=False)


def told(reason: str = "ERROR_REASON_DEPENDENCY_UNAVAILABLE") -> DependencyUnavailableError:
    """What the service itself says."""
    metadata = {"dependency": "embed", "code": "UNAVAILABLE", "reason": reason}
    return DependencyUnavailableError("away", metadata=metadata)


def died() -> DependencyUnavailableError:
    """What the connection says."""
    metadata = {"dependency": "embed", "code": "UNAVAILABLE"}
    return DependencyUnavailableError("gone", metadata=metadata)


class Embed:
    """An embed service that answers as the test says."""

    def __init__(self, answer: Callable[[int, Sequence[str]], Any]) -> None:
        self.calls: list[list[str]] = []
        self._answer = answer

    async def embed_documents(self, _model: EmbedModel, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        await asyncio.sleep(0)
        found = self._answer(len(self.calls), texts)
        if isinstance(found, Exception):
            raise found
        return found

    async def model(self, _name: str) -> EmbedModel:
        return MODEL


def forwards(embed: Embed, gate: ForwardGate | None = None, seconds: float = 10.0) -> Forwards:
    return Forwards(embed, gate or ForwardGate(), Patience(seconds))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "reason",
    ["ERROR_REASON_DEPENDENCY_UNAVAILABLE", "ERROR_REASON_SHUTTING_DOWN"],
)
async def test_a_service_that_says_it_is_away_is_asked_again_and_no_text_is_blamed(
    reason: str,
) -> None:
    """Red when four such answers make a text the culprit."""
    embed = Embed(lambda n, texts: told(reason) if n < 6 else [vector(text) for text in texts])

    assert await forwards(embed).embed(MODEL, ["a", "b"]) == [vector("a"), vector("b")]

    assert embed.calls == [["a", "b"]] * 6


async def test_a_service_that_stays_away_is_told_as_that() -> None:
    embed = Embed(lambda _n, _texts: told())

    with pytest.raises(DependencyUnavailableError, match="away"):
        await forwards(embed, seconds=0.3).embed(MODEL, ["a", "b"])

    assert all(call == ["a", "b"] for call in embed.calls)


async def test_only_what_was_not_embedded_is_sent_again() -> None:
    """Red when a text that was lost with the engine is a failed node, or others go twice."""

    def answer(n: int, texts: Sequence[str]) -> list[Vector | Failure]:
        return [AWAY if n == 1 and text in "bd" else vector(text) for text in texts]

    embed = Embed(answer)

    found = await forwards(embed).embed(MODEL, list("abcd"))

    assert found == [vector(text) for text in "abcd"]
    assert embed.calls == [list("abcd"), list("bd")]


async def test_nobody_waits_at_the_gate_for_a_service_that_is_away() -> None:
    """Red when a suspect keeps the gate while it waits: other models stand still."""
    gate = ForwardGate()
    waits = asyncio.Event()

    def answer(n: int, texts: Sequence[str]) -> Any:
        if n <= 2:
            return died()
        waits.set()
        return told() if not other_is_done else [vector(text) for text in texts]

    other_is_done: list[bool] = []
    suspect = asyncio.create_task(forwards(Embed(answer), gate).embed(MODEL, ["a"]))
    await waits.wait()
    other = Embed(lambda _n, texts: [vector(text) for text in texts])

    async with asyncio.timeout(5):
        assert await forwards(other, gate).embed(MODEL, ["b"]) == [vector("b")]
    other_is_done.append(True)

    assert await suspect == [vector("a")]


async def test_the_text_with_which_the_service_dies_is_found() -> None:
    embed = Embed(lambda _n, texts: died() if "x" in texts else [vector(text) for text in texts])

    found = await forwards(embed).embed(MODEL, ["a", "x", "b"])

    assert [found[0], found[2]] == [vector("a"), vector("b")]
    assert isinstance(found[1], Failure)
    assert found[1].reason == "ERROR_REASON_WORKER_DIED"
