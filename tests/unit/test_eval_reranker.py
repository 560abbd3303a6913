"""The training of a reranker, on a tree of a few functions and a model of one layer."""

from __future__ import annotations

import math
from statistics import mean
from typing import TYPE_CHECKING, Any

import pytest
import torch

from services.embed.backends.loading import load
from services.embed.model import ModelId
from services.embed.sources import FolderSource
from tests.eval.train_reranker import (
    MAX_TOKENS,
    Options,
    gather,
    loss_of,
    new_model,
    save,
    train,
)
from tests.eval.training_pairs import mark_of
from tests.support.tiny_models import make_model
from tests.unit.embed.harness import bundled_folder, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.eval.training_pairs import Example

pytestmark = pytest.mark.slow

_THINGS = (
    *("cookie", "header", "session", "route", "template", "cache", "socket"),
    *("thread", "ledger", "vector", "colour", "angle", "folder", "window"),
)
_OPTIONS = Options(lists=10_000, wrong=3, rate=3e-3, bfloat16=False)


def _function(thing: str) -> str:
    return (
        f"def read_{thing}(raw):\n"
        f'    """Returns the {thing} of what was sent. It is empty without one."""\n'
        f"    {thing} = raw.partition('{thing}')[2]\n    return {thing}.strip()\n"
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a module of functions, one that imports of it, and a test."""
    folder = tmp_path_factory.mktemp("source") / "things"
    (folder / "tests").mkdir(parents=True)
    (folder / "reading.py").write_text("\n\n".join(map(_function, _THINGS)))
    names = "\n".join(f"from things.reading import read_{thing}" for thing in _THINGS)
    (folder / "use.py").write_text(f"{names}\n\n\ndef use():\n    return read_cookie(read_angle)\n")
    tests = "\n\n".join(f"def test_read_{thing}():\n    assert True\n" for thing in _THINGS)
    (folder / "tests" / "test_reading.py").write_text(tests)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of vectors, of one layer."""
    return make_model(tmp_path_factory.mktemp("bases") / "base", bundled_folder())


@pytest.fixture(scope="module")
def examples(tree: Path, base: Path) -> list[Example]:
    return gather([tree], base, _OPTIONS, frozenset())


def test_a_question_is_not_in_its_answer(examples: list[Example]) -> None:
    """Red when docstrings stay, or when what a search sends of a node is not what is learnt."""
    asked = {(each.kind, each.query): each for each in examples}
    told = "Returns the cookie of what was sent."
    whole = asked["docstring", f"{told} It is empty without one."]

    assert whole.answer.startswith("def read_cookie(raw):")
    assert "what was sent" not in whole.answer
    assert asked["sentence", told].answer == whole.answer
    assert asked["words", "read cookie"].answer == whole.answer
    assert asked["test", "what test_read_cookie tests"].answer == whole.answer
    assert asked["import", "from things.reading import read_cookie"].answer == whole.answer
    kinds = {each.kind for each in examples}
    assert kinds == {"docstring", "sentence", "words", "symbol", "test", "import"}
    assert all(each.answer not in each.wrong and each.wrong for each in examples)
    assert all(each.near[each.place] == each.answer for each in examples if each.place >= 0)


def test_what_is_reported_on_is_not_learnt(tree: Path, base: Path, examples: list[Example]) -> None:
    """Red when a copy is told from its original by space, or stays among wrong answers."""
    (text,) = {each.answer for each in examples if each.query == "read cookie"}
    spaced = text.replace("\n", "\n\n") + "  "

    left = gather([tree], base, _OPTIONS, frozenset({mark_of(spaced)}))

    assert text in {each.answer for each in examples}
    assert not any(text in (each.answer, *each.near) for each in left)
    assert left


async def test_a_loss_falls_and_what_was_trained_is_served(
    examples: list[Example], base: Path, tmp_path: Path
) -> None:
    """Red when the loss does not fall, or a service gives other scores than were learnt."""
    model = new_model(base, seed=1)
    losses = [loss for _, loss in train(model, examples * 25, _OPTIONS)]
    save(model, tmp_path / "reranker")
    source = FolderSource(ModelId("trained"), tmp_path / "reranker", reranks=True)
    loaded = await load(source, settings_of(backend="torch", isolation="none"))

    assert mean(losses[-20:]) < 0.95 * mean(losses[:5])
    assert loaded.backend.info.scores
    encoder: Any = loaded.encoder
    texts = [examples[0].answer, *examples[0].wrong[:3]]
    assert encoder.max_tokens == min(MAX_TOKENS, 256)
    rows = loaded.backend.infer(
        [each.ids for each in encoder.encode_pairs(examples[0].query, texts)]
    )
    pairs: Any = [(examples[0].query, text) for text in texts]
    assert rows[:, 0].tolist() == pytest.approx(model.predict(pairs).tolist(), abs=1e-4)


def test_a_loss_is_what_it_is_by_hand() -> None:
    even = torch.zeros(2, 4)
    right = torch.tensor([[2.0, 0.0, 0.0, 0.0]])

    assert loss_of(even, "lists").item() == pytest.approx(math.log(4))
    assert loss_of(right, "lists").item() == pytest.approx(math.log(math.e**2 + 3) - 2)
    # The answer weighs as much as the three others.
    assert loss_of(even, "pairs").item() == pytest.approx(math.log(2) * (3 + 3) / 4)
