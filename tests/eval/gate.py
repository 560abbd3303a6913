"""What CI holds search to: a small tree, asked by tasks made of it and by questions of people.

The tasks are those of `tests.eval.tasks` over Flask's package. The questions, in
`questions/flask.json`, are over that package beside some of its tests, documents and examples, and
a copy of others' code, so that each prior has something to put behind. Every question's score is
recorded: what is compared is the same question then and now, which shows losses that vanish in the
spread of a mean over different questions.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence  # noqa: TC003 - the type of a constant
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, TypedDict

from tests.eval.labelled import OWN_QUESTIONS, read_targets
from tests.eval.rig import rig
from tests.eval.scoring import interval, score
from tests.eval.stages import STAGES
from tests.eval.tasks import make_tree
from tests.support import corpora

if TYPE_CHECKING:
    from tests.eval.stages import Weights

RECORDED = Path(__file__).parent / "recorded.json"
CORPORA = ("flask", "click")
_PACKAGE = "flask/src/flask"
_PARTS = {
    _PACKAGE: "src/flask",
    "flask/tests/test_config.py": "tests/test_config.py",
    "flask/tests/test_json.py": "tests/test_json.py",
    "flask/tests/test_views.py": "tests/test_views.py",
    "flask/docs/blueprints.rst": "docs/blueprints.rst",
    "flask/docs/errorhandling.rst": "docs/errorhandling.rst",
    "flask/docs/signals.rst": "docs/signals.rst",
    "flask/docs/views.rst": "docs/views.rst",
    "flask/examples/tutorial/flaskr": "examples/tutorial/flaskr",
    "click/click/testing.py": "vendor/click/testing.py",
    "click/click/utils.py": "vendor/click/utils.py",
}
"""Files and folders of the corpora, and where they lie in the tree that is asked."""

_ROUNDING = 0.001
"""Recorded scores are rounded; less is no change."""


class Record(TypedDict):
    """What one set of questions scored in one stage."""

    ndcg: float
    low: float
    high: float
    scores: list[float]
    """Of each question, in order."""


_GATED: Mapping[str, Weights] = {
    name: STAGES[name] for name in ("lexical", "dense", "fused", "fused + priors")
}


async def measure(stages: Mapping[str, Weights] = _GATED) -> dict[str, list[float]]:
    """Returns NDCG@10 of each question, by set and stage; tasks are asked in the last stage alone.

    Args:
        stages: weights by name; the last is what users get, or what is tried in its place.
    """
    folder = Path(tempfile.mkdtemp(prefix="lodestone-gate-"))
    try:
        tasks = make_tree(corpora.ROOT / _PACKAGE, folder / "tasks")
        _copy_parts(folder / "questions")
        asked = {
            "tasks": [(task.query, task.targets) for task in tasks],
            "questions": read_targets(OWN_QUESTIONS / "flask.json"),
        }
        results = {}
        async with rig(folder) as running:
            for name in asked:
                await running.index(name, name)
            for stage, weights in stages.items():
                async with running.searching(weights) as searcher:
                    for name, questions in asked.items():
                        if name == "tasks" and stage != tuple(stages)[-1]:
                            continue
                        results[f"{name}, {stage}"] = [
                            score(await searcher.ask(name, query), targets).ndcg
                            for query, targets in questions
                        ]
        return results
    finally:
        shutil.rmtree(folder)


def record(results: Mapping[str, Sequence[float]]) -> dict[str, Record]:
    """Returns what a later run is held to."""
    told = {}
    for name, scores in results.items():
        low, high = interval(scores)
        told[name] = Record(
            ndcg=round(mean(scores), 4),
            low=round(low, 4),
            high=round(high, 4),
            scores=[round(each, 3) for each in scores],
        )
    return told


def losses(
    recorded: Mapping[str, Record], results: Mapping[str, Sequence[float]]
) -> dict[str, tuple[float, float]]:
    """Returns what fell below its record by more than the interval: the mean change and its bound.

    The interval is that of the mean change of a question, by bootstrap over questions.
    """
    fallen = {}
    for name, before in recorded.items():
        assert len(results[name]) == len(before["scores"]), f"{name}: other questions than recorded"
        changes = [now - then for now, then in zip(results[name], before["scores"], strict=True)]
        _, high = interval(changes)
        if high < -_ROUNDING:
            fallen[name] = (mean(changes), high)
    return fallen


def read_record() -> dict[str, Record]:
    """Returns what was recorded."""
    told: dict[str, Record] = json.loads(RECORDED.read_text("utf-8"))
    return told


def write_record(results: Mapping[str, Sequence[float]]) -> None:
    """Replaces what is recorded."""
    RECORDED.write_text(json.dumps(record(results), indent=1) + "\n", encoding="utf-8")


def _copy_parts(tree: Path) -> None:
    for source, target in _PARTS.items():
        place = tree / target
        place.parent.mkdir(parents=True, exist_ok=True)
        origin = corpora.ROOT / source
        if origin.is_dir():
            shutil.copytree(origin, place)
        else:
            shutil.copyfile(origin, place)
