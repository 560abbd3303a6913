"""The real model and another side by side on one workspace, by the command over real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.stack import Lodestone, lodestone, wait_until
from tests.system.conftest import MODEL_CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILES = ("sessions.py", "helpers.py", "templating.py", "config.py")


@pytest.fixture(scope="module")
def both() -> Iterator[Lodestone]:
    """The product with the model that users get, and one that hashes words."""
    yield from lodestone(EMBED_CACHE_DIR=str(MODEL_CACHE), EMBED_EXTRA_MODELS="words=hashing:128")


@pytest.fixture
def tree(flask: Path) -> Path:
    """A few files of Flask."""
    for path in list(flask.rglob("*")):
        if path.is_file() and path.name not in _FILES:
            path.unlink()
    return flask


def test_a_model_is_added_compared_activated_and_removed(both: Lodestone, tree: Path) -> None:
    """Search by the model that hashes is what it is asked to become, and the way back is a switch.

    The model that knows words finds more of what comments say than the one that hashes them.
    """
    indexed = both.index(tree)
    workspace = indexed["workspace"]
    total = indexed["nodes"]["total"]
    named = ("--workspace", workspace, "--json")

    added = both.run("models", "add", "words", *named)
    assert added.code == 0, added.stderr
    wait_until(lambda: _models(both, workspace)["words"]["nodes"]["pending"] == 0, 60, "embedded")
    compared = both.run("models", "--compare", "--questions", "60", *named).json["workspaces"][0]
    shown = both.run("models", "--compare", "--questions", "10", "--workspace", workspace)
    activated = both.run("models", "activate", "words", *named)
    found = both.search("sign the cookie that remembers a visitor", tree)
    refused = both.run("models", "remove", "words", *named)
    back = both.run("models", "activate", "all-minilm-l6-v2", *named)
    removed = both.run("models", "remove", "words", *named)

    assert added.json["nodes"]["total"] == total
    models = {model["model"]: model for model in compared["models"]}
    assert models["all-minilm-l6-v2"]["active"]
    assert models["words"]["nodes"] == {
        "total": total,
        "embedded": total,
        "pending": 0,
        "failed": 0,
    }
    assert [models[name]["dimensions"] for name in ("all-minilm-l6-v2", "words")] == [384, 128]
    assert all(model["texts_per_second"] > 0 for model in models.values())
    assert all(model["serving"] == "ready" for model in models.values())
    scores = {score["model"]: score for score in compared["comparison"]["scores"]}
    assert compared["comparison"]["questions"] >= 40
    assert scores["all-minilm-l6-v2"]["recall_at_10"] > 0.5
    assert "MRR@10" in shown.stdout
    assert "served by embed" in shown.stdout
    assert activated.json["active"], activated.stderr
    assert found
    assert (refused.code, back.code, removed.code) == (1, 0, 0), refused.stderr + removed.stderr
    assert set(_models(both, workspace)) == {"all-minilm-l6-v2"}
    assert both.index(tree)["forwards"] == 0
    report = both.run("report", indexed["run"], "--files", "--json").json
    assert report["files_by_result"] == {"ok": len(_FILES)}
    assert (
        sum(each["nodes"]["embedded"] for each in report["outcomes"])
        == (indexed["nodes"]["embedded"])
    )


def _models(product: Lodestone, workspace: str) -> dict[str, dict[str, Any]]:
    done = product.run("models", "--workspace", workspace, "--json")
    assert done.code == 0, done.stderr
    return {model["model"]: model for model in done.json["workspaces"][0]["models"]}
