"""Asks trees by pieces of code and by paths: `make eval SHAPES=1`.

No person's question of the labelled sets has one of these shapes. A piece of code is some lines
from the middle of a function, its own variables called otherwise; paths are those of files, alone,
with a name, and as modules are written. `--try` asks with other weights of the arms as well, which
`make eval SHAPES=1 TRY=1` does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path, PurePosixPath
from statistics import mean
from typing import TYPE_CHECKING

from services.indexer.search.question import kind_of
from tests.eval.offline import PACKAGES
from tests.eval.rig import rig
from tests.eval.scoring import Target, interval, score
from tests.eval.tasks import Task, chosen, definitions, make_tree
from tests.support import corpora

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.eval.definitions import Definition
    from tests.eval.offline import Package
    from tests.eval.stages import Weights

_LEAST_LINES, _LINES = 8, 4
"""Of a body that is asked for, and of the piece of it."""

_OWN_NAME = re.compile(r"(?<![\w.>])([a-z_]\w*)\s(?::[^=\n]+)?=\s|\bfor\s+(\w+)\s+in\b")
"""What a body assigns, in all of the languages."""

_SAYS = re.compile(r"\s*(?!#(?!\s*(?:if|include|define))|//|/?\*)[^\s.]")
"""A line that is neither empty nor a comment."""

WEIGHTS: Mapping[str, Weights] = {
    "as set": {},
    **{
        f"{kind} {share:g}": {f"{kind}_dense_share": share}
        for kind, shares in {
            "code": (0, 0.1, 0.2, 0.3, 0.5, 1),
            "path": (0, 0.3),
            "symbol": (0.1, 0.3),
        }.items()
        for share in shares
    },
}


def make_shapes(root: Path) -> list[Task]:
    """Returns the questions of a tree whose docstrings are gone, the same ones each time."""
    found = [each for each in definitions(root) if not each.is_test]
    files = [file.relative_to(root).as_posix() for file in sorted(root.rglob("*.*"))]
    return chosen([*_code(root, found), *_paths(files), *_names(found)])


def _code(root: Path, found: Sequence[Definition]) -> Iterator[Task]:
    pieces = {each: _piece(root, each) for each in found if each.is_function}
    times = Counter(pieces.values())
    for each, piece in pieces.items():
        if piece and times[piece] == 1:
            yield Task("code", piece, (each.target,))


def _piece(root: Path, definition: Definition) -> str:
    """Returns some lines of a body, its own variables called otherwise; empty for a short one."""
    lines = (root / definition.path).read_text("utf-8").split("\n")
    body = [line for line in lines[definition.first : definition.last] if _SAYS.match(line)]
    if len(body) < _LEAST_LINES:
        return ""
    middle = (len(body) - _LINES) // 2
    piece = textwrap.dedent("\n".join(body[middle : middle + _LINES]))
    own = dict.fromkeys(one or other for one, other in _OWN_NAME.findall("\n".join(body)))
    for number, name in enumerate(own):
        piece = re.sub(rf"(?<![\w.>]){re.escape(name)}\b", f"v{number}", piece)
    return piece


def _paths(files: Sequence[str]) -> Iterator[Task]:
    ends = Counter(map(_end, files))
    for path in files:
        if ends[_end(path)] == 1 and "/" in path:
            yield Task("path", _end(path), (Target(path),))
            if path.endswith(".py"):
                yield Task("module", _module(path), (Target(path),))


def _names(found: Sequence[Definition]) -> Iterator[Task]:
    times = Counter((each.path, _qualified(each, found)) for each in found)
    for each in found:
        name = _qualified(each, found)
        if times[each.path, name] == 1 and not each.name.startswith("__"):
            yield Task("path and name", f"{_end(each.path)} {name}", (each.target,))
            if each.path.endswith(".py"):
                yield Task("dotted name", f"{_module(each.path)}.{name}", (each.target,))


def _qualified(definition: Definition, found: Sequence[Definition]) -> str:
    """Returns a name behind that of the innermost class around it, if there is one."""
    around = [
        each
        for each in found
        if each.path == definition.path
        and not each.is_function
        and each.first < definition.first
        and definition.last <= each.last
    ]
    inner = max(around, key=lambda each: each.first, default=None)
    return f"{inner.name}.{definition.name}" if inner else definition.name


def _end(path: str) -> str:
    return "/".join(PurePosixPath(path).parts[-2:])


def _module(path: str) -> str:
    return _end(path).removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")


async def measure(
    package: Package, tried: Mapping[str, Weights]
) -> tuple[list[Task], dict[str, list[float]]]:
    """Returns the questions of a package, and NDCG@10 of each by other weights."""
    folder = Path(tempfile.mkdtemp(prefix="lodestone-eval-"))
    try:
        # A package's own folder is part of its paths.
        tree = folder / "tree" / PurePosixPath(package.folder or package.name).name
        tree.parent.mkdir()
        make_tree(corpora.ROOT / package.name / package.folder, tree)
        tasks = make_shapes(folder / "tree")
        scores = {}
        async with rig(folder) as running:
            await running.index("tree", "tree")
            for name, weights in tried.items():
                async with running.searching(weights) as searcher:
                    scores[name] = [
                        score(await searcher.ask("tree", task.query), task.targets).ndcg
                        for task in tasks
                    ]
        return tasks, scores
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Measures and prints a table; the last line is JSON: the scores of all questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--try", dest="is_trying", action="store_true")
    parser.add_argument("--only", nargs="+", help="names of packages")
    options = parser.parse_args()
    tried = WEIGHTS if options.is_trying else {"as set": {}}
    told = {}
    sys.stdout.write("| package | weights | shape | questions | taken as | NDCG@10 | 95% |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    for package in PACKAGES:
        if options.only and package.name not in options.only:
            continue
        tasks, scores = asyncio.run(measure(package, tried))
        told[package.name] = scores
        for name, ndcg in scores.items():
            for line in _rows(tasks, ndcg):
                sys.stdout.write(f"| {package.title} | {name} | {line} |\n")
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


def _rows(tasks: Sequence[Task], ndcg: Sequence[float]) -> Iterator[str]:
    for shape in sorted({task.kind for task in tasks}):
        own = [value for task, value in zip(tasks, ndcg, strict=True) if task.kind == shape]
        kinds = Counter(kind_of(task.query).value for task in tasks if task.kind == shape)
        taken = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        low, high = interval(own)
        yield f"{shape} | {len(own)} | {taken} | {mean(own):.3f} | {low:.3f} to {high:.3f}"


if __name__ == "__main__":
    sys.exit(main())
