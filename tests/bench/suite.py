"""All measurements of one service: `python -m tests.bench.suite io`. The last line is JSON.

Runs every module `<service>_<topic>` of this folder that has `measure(scratch)`, or only those
whose topics are named too: `python -m tests.bench.suite embed library`. Each gets an empty folder.
One that fails is told and costs its own figures alone: the exit status is then 1. A missed goal is
no failure.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.runtime import log
from tests.bench.figures import say

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVICES = ("embed", "indexer", "io", "search")
Figures = dict[str, dict[str, Any]]


def main(arguments: Sequence[str]) -> int:
    """Measures, tells figures and goals, and prints one line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.suite")
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument("topics", nargs="*", help="all by default")
    asked = parser.parse_args(arguments)
    try:
        names = module_names(asked.service, asked.topics)
    except ValueError as error:
        parser.error(str(error))
    log.configure("bench", "warning", "auto")
    figures, failed = measure_all(names)
    for name, entry in figures.items():
        goal = f", goal {entry['goal']}: {'met' if entry['met'] else 'MISSED'}"
        say(f"  {name}: {entry['value']}{goal if entry['goal'] is not None else ''}")
    if failed:
        say(f"failed: {', '.join(failed)}")
    sys.stdout.write(json.dumps(figures) + "\n")
    return 1 if failed else 0


def module_names(service: str, topics: Sequence[str] = ()) -> list[str]:
    """Returns the modules of a service, in the order of their names.

    Raises:
        ValueError: there is no such topic.
    """
    found = {
        path.stem.removeprefix(f"{service}_"): f"tests.bench.{path.stem}"
        for path in sorted(Path(__file__).parent.glob(f"{service}_*.py"))
    }
    if unknown := set(topics) - found.keys():
        raise ValueError(
            f"no such topic: {', '.join(sorted(unknown))}; there are {', '.join(found)}"
        )
    return [name for topic, name in found.items() if not topics or topic in topics]


def measure_all(names: Sequence[str]) -> tuple[Figures, list[str]]:
    """Returns the figures of some modules, and the names of those that failed."""
    figures: Figures = {}
    failed = []
    for name in names:
        try:
            found = measure(name)
            if twice := figures.keys() & found.keys():
                raise ValueError(f"figures of another measurement: {', '.join(sorted(twice))}")  # noqa: TRY301
        except Exception:  # noqa: BLE001 - the others are measured all the same
            traceback.print_exc()
            failed.append(name.rpartition(".")[2])
            continue
        figures |= found
    return figures, failed


def measure(name: str) -> Figures:
    """Returns the figures of a module, none when it is no measurement."""
    module = importlib.import_module(name)
    if not hasattr(module, "measure"):
        return {}
    say(f"{name.rpartition('.')[2]}: {(module.__doc__ or '').partition(chr(10))[0]}")
    with tempfile.TemporaryDirectory(prefix="lodestone-bench-") as scratch:
        found: Figures = module.measure(Path(scratch))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
