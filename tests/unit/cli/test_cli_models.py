"""The models of a running embed service, as the command shows them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from services.cli.models import default_model, list_models, print_models
from tests.unit.embed.harness import service

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_all_models_are_told_the_default_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when the first by name is taken for the default."""
    address = f"unix:{tmp_path}/s"
    models: list[dict[str, Any]] = []
    async with service(
        address,
        extra_models=("aaa=hashing:32",),
        model_shares=("aaa=4",),
        matryoshka_dimensions=(64,),
    ):
        for _ in range(100):
            models = await asyncio.to_thread(list_models, address)
            if models[-1]["state"] == "ready":
                break

    print_models(models)

    assert [(m["name"], m["default"], m["dimensions"], m["share"]) for m in models] == [
        ("hashing", True, 384, 1),
        ("aaa", False, 32, 4),
    ]
    default = default_model(models)
    assert default is not None
    assert (default["name"], default["dimensions"]) == ("hashing", 384)
    assert models[0]["matryoshka_dimensions"] == [64]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("hashing (default)  ready  hashing  float32    384")
    assert lines[-1].split() == ["aaa", "ready", "hashing", "float32", "32", "4", "0"]


def test_a_model_that_failed_is_shown_with_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = {
        "name": "broken",
        "default": False,
        "state": "failed",
        "backend": "",
        "precision": "",
        "dimensions": 0,
        "share": 1,
        "queued_tokens": 0,
        "error": "models/broken does not load: it says why",
    }

    print_models([failed])

    assert "does not load: it says why" in capsys.readouterr().out
    assert default_model([failed]) is None


def test_a_service_that_does_not_answer_has_no_models(tmp_path: Path) -> None:
    assert list_models(f"unix:{tmp_path}/nobody") == []
