"""Runs the tasks of `tests.eval.tasks` over pinned packages: `python -m tests.eval.offline`.

`--write` renews the table and the plot in `docs/search-quality.md`, and the recorded scores.
`--reranker` names the folder of a cross-encoder, whose stage is run too; the recorded scores, which
are of searches without one, stay as they are then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from tests.eval import gate
from tests.eval.plot import bars
from tests.eval.rig import rig
from tests.eval.scoring import Score, interval, score
from tests.eval.stages import RERANKED, STAGES
from tests.eval.tasks import Task, make_tree
from tests.support import corpora

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tests.eval.rig import Rig
    from tests.eval.stages import Weights

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "search-quality.md"
PLOT = ROOT / "docs" / "search-quality.svg"
BEGIN, END = "<!-- begin of make eval -->", "<!-- end of make eval -->"


@dataclass(frozen=True, slots=True)
class Package:
    """A package, and the folder of it that is asked about."""

    name: str
    folder: str
    language: str = "python"
    is_tuned: bool = False

    @property
    def title(self) -> str:
        """What the tables call it."""
        notes = [self.language] if self.language != "python" else []
        notes += ["tuned on"] if self.is_tuned else []
        return f"{self.name} ({', '.join(notes)})" if notes else self.name


PACKAGES = (
    Package("flask", "", is_tuned=True),
    Package("click", "click", is_tuned=True),
    Package("jinja2", "jinja2"),
    Package("unicorn", "django_unicorn/static/unicorn/js", "javascript"),
    Package("tokenizers", "tokenizers-lib", "rust"),
    Package("hiredis", "vendor/hiredis", "c"),
)
Scored = list[tuple[Task, Score]]


@contextlib.asynccontextmanager
async def indexed(
    package: Package, reranker: Path | None = None
) -> AsyncIterator[tuple[Rig, list[Task]]]:
    """Yields services over a package without its docstrings, as workspace `tree`, and its tasks."""
    folder = Path(tempfile.mkdtemp(prefix="lodestone-eval-"))
    try:
        tasks = make_tree(corpora.ROOT / package.name / package.folder, folder / "tree")
        async with rig(folder, reranker) as running:
            await running.index("tree", "tree")
            yield running, tasks
    finally:
        shutil.rmtree(folder)


async def measure(
    package: Package, stages: Mapping[str, Weights], reranker: Path | None = None
) -> dict[str, Scored]:
    """Returns the score of each task of a package in each stage, and with a reranker if given."""
    async with indexed(package, reranker) as (running, tasks):
        results = {name: await _ask(running, weights, tasks) for name, weights in stages.items()}
        if reranker is not None:
            results[RERANKED] = await _ask(running, {}, tasks, reranked=True)
        return results


async def _ask(
    running: Rig, weights: Weights, tasks: Sequence[Task], *, reranked: bool = False
) -> Scored:
    async with running.searching(weights, reranked=reranked) as searcher:
        return [
            (task, score(await searcher.ask("tree", task.query), task.targets)) for task in tasks
        ]


def table(results: Mapping[str, Mapping[str, Scored]], packages: Sequence[Package]) -> str:
    """Returns a table in Markdown: packages, stages, kinds of tasks."""
    kinds = sorted(
        {task.kind for by_stage in results.values() for s in by_stage.values() for task, _ in s}
    )
    lines = [
        f"| package | stage | NDCG@10 | 95% | MRR@10 | recall@10 | {' | '.join(kinds)} |",
        f"|---|---|{'---|' * (4 + len(kinds))}",
    ]
    for package in packages:
        for stage, scored in results[package.name].items():
            values = [each.ndcg for _, each in scored]
            low, high = interval(values)
            by_kind = (_mean([s.ndcg for task, s in scored if task.kind == kind]) for kind in kinds)
            lines.append(
                f"| {package.title} | {stage} "
                f"| {mean(values):.3f} | {low:.3f} to {high:.3f} "
                f"| {mean(s.mrr for _, s in scored):.3f} "
                f"| {mean(s.recall for _, s in scored):.3f} | {' | '.join(by_kind)} |"
            )
        if RERANKED not in results[package.name]:
            lines.append(
                f"| {package.title} | {RERANKED} | no model given |{'  |' * (3 + len(kinds))}"
            )
    return "\n".join(lines)


def main() -> int:
    """Measures and prints; the last line is JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="+", help="names of packages; nothing is written")
    parser.add_argument("--reranker", type=Path, help="folder of a cross-encoder")
    options = parser.parse_args()
    packages = [each for each in PACKAGES if not options.only or each.name in options.only]
    results = {}
    for package in packages:
        sys.stderr.write(f"{package.name} ...\n")
        results[package.name] = asyncio.run(measure(package, STAGES, options.reranker))
    text = table(results, packages)
    sys.stdout.write(text + "\n")
    means = {
        name: {stage: mean(s.ndcg for _, s in scored) for stage, scored in by_stage.items()}
        for name, by_stage in results.items()
    }
    if options.write and not options.only:
        page = PAGE.read_text("utf-8")
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
        PLOT.write_text(bars("NDCG@10 by package and stage", means), encoding="utf-8")
        if options.reranker is None:
            gate.write_record(asyncio.run(gate.measure()))
    sys.stdout.write(json.dumps(means) + "\n")
    return 0


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" if values else ""


if __name__ == "__main__":
    sys.exit(main())
