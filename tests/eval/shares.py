"""Tries what a reranker's order may weigh: `python -m tests.eval.shares --reranker FOLDER`.

Each question is searched for once, with the rank before and by the reranker of each hit; both are
joined for each share as search does it. By default the packages are those that may be tuned on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from services.indexer.search.blending import blended_order
from services.indexer.search.weights import DEFAULTS
from tests.eval.offline import PACKAGES, Package, indexed
from tests.eval.scoring import interval, score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.eval.scoring import Target
    from tests.eval.tasks import Task

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

Orders = list[tuple["Target", int, int]]
"""Hits of a question with their ranks before and by the reranker, 0 where it did not score one."""


async def ask(package: Package, reranker: Path) -> list[tuple[Task, Orders]]:
    """Returns the tasks of a package with what is found for each."""
    async with (
        indexed(package, reranker) as (running, tasks),
        running.searching({}, reranked=True) as searcher,
    ):
        return [(task, await searcher.ask_for_orders("tree", task.query)) for task in tasks]


def joined(orders: Orders, share: float) -> list[Target]:
    """Returns hits in the order that a share gives."""
    before = sorted(orders, key=lambda each: each[1])
    places = [reranked or place for place, (_, _, reranked) in enumerate(before, start=1)]
    order = blended_order(places, share, DEFAULTS.rerank_smoothing)
    return [before[at][0] for at in order]


def ndcg_by_share(found: Sequence[tuple[Task, Orders]], kind: str = "") -> dict[float, list[float]]:
    """Returns NDCG@10 of each question by each share, of one kind or of all."""
    return {
        share: [
            score(joined(orders, share), task.targets).ndcg
            for task, orders in found
            if kind in ("", task.kind)
        ]
        for share in SHARES
    }


def main() -> int:
    """Measures and prints a table; the last line is JSON: the scores of all questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reranker", type=Path, required=True, help="folder of a cross-encoder")
    parser.add_argument("--only", nargs="+", help="names of packages")
    options = parser.parse_args()
    names = options.only or [each.name for each in PACKAGES if each.is_tuned]
    told = {}
    sys.stdout.write("| package | tasks | share | NDCG@10 | change to 0 | 95% |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for package in PACKAGES:
        if package.name not in names:
            continue
        found = asyncio.run(ask(package, options.reranker))
        told[package.name] = ndcg_by_share(found)
        for kind in ("", *sorted({task.kind for task, _ in found})):
            values = ndcg_by_share(found, kind)
            for share, own in values.items():
                changes = [now - then for now, then in zip(own, values[0.0], strict=True)]
                low, high = interval(changes)
                sys.stdout.write(
                    f"| {package.title} | {kind or 'all'} | {share:g} | {mean(own):.3f} "
                    f"| {mean(changes):+.3f} | {low:+.3f} to {high:+.3f} |\n"
                )
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
