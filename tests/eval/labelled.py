"""Answers labelled questions over pinned repositories: `python -m tests.eval.labelled`.

Ends with 3 when a repository or its questions are missing, and says how to get them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from tests.eval.rig import rig
from tests.eval.scoring import Score, Target, interval, score
from tests.eval.stages import ABLATIONS, RERANKED, STAGES, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.eval.rig import Rig
    from tests.eval.stages import Weights

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIST = HERE / "repositories.txt"
OWN_QUESTIONS = HERE / "questions"
MISSING = 3


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at a commit; `directory` is what is indexed of it."""

    name: str
    part: str
    github: str
    commit: str
    directory: str
    language: str

    @property
    def workspace(self) -> str:
        """The name of its workspace, which has at least four letters."""
        return f"eval-{self.name}"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question with what it should find."""

    repository: Repository
    query: str
    category: str
    targets: tuple[Target, ...]

    def group(self, heading: str) -> str:
        """Returns the group that it belongs to under a heading of the report."""
        return {
            "set": self.repository.part,
            "repository": self.repository.name,
            "language": self.repository.language,
            "category": self.category,
        }[heading]


def read_repositories(part: str) -> list[Repository]:
    """Returns the repositories of a set: `dev`, `own` or `all`."""
    lines = [line.split() for line in LIST.read_text("utf-8").splitlines()]
    every = [Repository(*fields) for fields in lines if fields and not fields[0].startswith("#")]
    return [item for item in every if part in {"all", item.part}]


def read_questions(repository: Repository, folder: Path) -> list[Labelled]:
    """Returns a repository's questions; a target is a path, or an object with lines too."""
    file = (OWN_QUESTIONS if repository.part == "own" else folder) / f"{repository.name}.json"
    return [
        Labelled(repository, item["query"], item["category"], _targets(item))
        for item in json.loads(file.read_text("utf-8"))
    ]


def read_targets(file: Path) -> list[tuple[str, tuple[Target, ...]]]:
    """Returns the questions of a file with what each should find."""
    return [(item["query"], _targets(item)) for item in json.loads(file.read_text("utf-8"))]


def missing(repositories: Iterable[Repository], sources: Path, questions: Path) -> list[str]:
    """Returns what is not there, each with how to get it."""
    lacks = []
    for item in repositories:
        folder = sources / item.name
        if not (folder / item.directory).is_dir():
            lacks.append(
                f"{folder} is missing: git clone https://github.com/{item.github} and put "
                f"`git archive {item.commit}` there"
            )
        if item.part == "dev" and not (questions / f"{item.name}.json").is_file():
            lacks.append(f"{questions / item.name}.json is missing: name its folder by QUESTIONS=")
    return lacks


async def ask_all(
    running: Rig, weights: Weights, questions: Sequence[Labelled], *, reranked: bool = False
) -> list[tuple[Labelled, Score]]:
    """Returns the score of each question with some weights, or reranked."""
    async with running.searching(weights, reranked=reranked) as searcher:
        return [
            (item, score(await searcher.ask(item.repository.workspace, item.query), item.targets))
            for item in questions
        ]


async def measure(
    repositories: Sequence[Repository],
    sources: Path,
    folder: Path,
    *,
    ablate: bool,
    reranker: Path | None = None,
) -> dict[str, list[tuple[Labelled, Score]]]:
    """Returns the scores of every stage, and with `ablate` of all but each prior.

    The stage with a reranker is among them where one is given.
    """
    questions = [item for each in repositories for item in read_questions(each, folder)]
    results = {}
    async with rig(sources, reranker) as running:
        for item in repositories:
            nodes = await running.index(
                item.workspace, f"{item.name}/{item.directory}".removesuffix("/.")
            )
            say(f"{item.name}: {nodes} nodes")
        stages: dict[str, Weights] = dict(STAGES)
        if ablate:
            stages |= {f"without {prior}": without(prior) for prior in ABLATIONS}
        for name, weights in stages.items():
            results[name] = await ask_all(running, weights, questions)
            say(f"{name:<34} {_ndcg(results[name]):.3f}")
        if reranker is not None:
            results[RERANKED] = await ask_all(running, {}, questions, reranked=True)
    return results


def report(results: Mapping[str, Sequence[tuple[Labelled, Score]]]) -> str:
    """Returns the tables as text."""
    lines = [f"{'NDCG@10':<34} {'all':>6} {'95%':>13} {'MRR':>6} {'recall':>6}"]
    for name, scored in results.items():
        values = [each.ndcg for _, each in scored]
        low, high = interval(values)
        mrr, recall = (mean(getattr(s, key) for _, s in scored) for key in ("mrr", "recall"))
        row = f"{name:<34} {mean(values):6.3f} {low:6.3f}-{high:.3f} {mrr:6.3f} {recall:6.3f}"
        lines.append(row)
    if RERANKED not in results:
        lines.append(f"{RERANKED:<34} no model given (RERANKER=folder of a cross-encoder)")
    for heading in ("set", "repository", "language", "category"):
        groups: dict[str, list[float]] = defaultdict(list)
        for item, each in results["fused + priors"]:
            groups[item.group(heading)].append(each.ndcg)
        lines += ["", f"fused + priors by {heading}"]
        lines += [f"{name:<34} {mean(v):6.3f}  ({len(v)})" for name, v in groups.items()]
    return "\n".join(lines)


def main() -> int:
    """Measures and prints; the last line is JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", dest="part", choices=("dev", "own", "all"), default="dev")
    parser.add_argument("--sources", type=Path, default=ROOT / "build" / "retrieval")
    parser.add_argument("--questions", type=Path, default=ROOT.parent / "shared/retrieval/dev")
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--reranker", type=Path, help="folder of a cross-encoder")
    parser.add_argument("--misses", action="store_true", help="name the questions below 0.7")
    options = parser.parse_args()
    repositories = read_repositories(options.part)
    lacks = missing(repositories, options.sources, options.questions)
    if lacks:
        sys.stderr.write("\n".join(lacks) + "\n")
        return MISSING
    results = asyncio.run(
        measure(
            repositories,
            options.sources.resolve(),
            options.questions,
            ablate=options.ablate,
            reranker=options.reranker,
        )
    )
    sys.stdout.write(report(results) + "\n")
    if options.misses:
        for item, each in results["fused + priors"]:
            if each.ndcg < 0.7:
                sys.stdout.write(f"{each.ndcg:.2f} {item.repository.name}: {item.query}\n")
    figures = {name: round(_ndcg(scored), 4) for name, scored in results.items()}
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def say(text: str) -> None:
    """Tells how far it is, beside the results."""
    sys.stderr.write(text + "\n")


def _ndcg(scored: Sequence[tuple[Labelled, Score]]) -> float:
    return mean(each.ndcg for _, each in scored)


def _targets(item: Mapping[str, Any]) -> tuple[Target, ...]:
    return tuple(map(_target, [*item["relevant"], *item["secondary"]]))


def _target(raw: str | dict[str, str | int]) -> Target:
    if isinstance(raw, str):
        return Target(raw)
    return Target(str(raw["path"]), int(raw.get("start_line", 0)), int(raw.get("end_line", 0)))


if __name__ == "__main__":
    sys.exit(main())
