"""Gauges of what waits and runs, and counters of what was shared and dropped."""

from __future__ import annotations

import asyncio

from prometheus_client import REGISTRY

from tests.unit.embed.harness import DOCUMENT, GatedBackend, eventually, served

_LONG = "three words more " * 20


def _value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"lodestone_embed_{name}", labels) or 0.0


def _told() -> dict[str, float]:
    return {
        "bulk": _value("queued_texts", lane="bulk"),
        "interactive": _value("queued_texts", lane="interactive"),
        "running": _value("running_batches"),
        "shared": _value("shared_texts_total"),
        "dropped": _value("dropped_texts_total"),
    }


async def test_what_waits_and_runs_is_told_while_it_does() -> None:
    """Red when a text counts as waiting once it runs, and when one that was left stays counted."""
    before, admitted = _told(), _value("admitted_tokens")

    def grown() -> dict[str, float]:
        return {name: value - before[name] for name, value in _told().items()}

    backend = GatedBackend()
    async with served(backend) as model:
        calls = []
        for text in ("runs", "is prepared"):
            calls.append(asyncio.create_task(model.embed([text], DOCUMENT)))
            await eventually(lambda: grown()["running"] == len(calls))
        left = asyncio.create_task(model.embed(["waits", _LONG, "waits too"], DOCUMENT))
        await eventually(lambda: grown()["bulk"] == 3)
        calls.append(asyncio.create_task(model.embed(["waits"], DOCUMENT)))
        await eventually(lambda: grown()["shared"] == 1)
        at_most = {"bulk": 3, "interactive": 0, "running": 2, "shared": 1, "dropped": 0}
        assert grown() == at_most
        waiting = _value("admitted_tokens") - admitted
        left.cancel()
        await eventually(left.done)
        assert grown() == at_most | {"bulk": 1, "dropped": 2}, "somebody waits for one of them"
        assert 0 < _value("admitted_tokens") - admitted < waiting - 60
        backend.gate.set()
        await asyncio.gather(*calls)

        assert grown() == dict.fromkeys(at_most, 0) | {"shared": 1, "dropped": 2}
        assert _value("admitted_tokens") == admitted
