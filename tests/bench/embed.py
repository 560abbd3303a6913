"""`make bench-embed`: all measurements of the embed service. The last line is JSON.

Runs every module `embed_*` of this folder that has `measure`, or those that are named without the
prefix: `python -m tests.bench.embed library`.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.figures import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

_PREFIX = "embed_"


def main(names: Sequence[str]) -> int:
    """Measures and prints; returns 1 when a measurement failed or gave a name twice."""
    results: dict[str, Any] = {}
    failed = []
    for module in modules(names):
        say(f"{module.__name__.rpartition('.')[2]}: {(module.__doc__ or '').splitlines()[0]}")
        try:
            with tempfile.TemporaryDirectory(prefix="lodestone-bench-") as scratch:
                found: dict[str, Any] = module.measure(Path(scratch))
        except Exception as error:  # noqa: BLE001 - the others are measured all the same
            say(f"  failed: {type(error).__name__}: {error}")
            failed.append(module.__name__)
            continue
        assert not results.keys() & found.keys(), "two measurements have one name"
        results |= found
    for name, entry in results.items():
        goal = (
            f", goal {entry['goal']}: {'met' if entry['met'] else 'MISSED'}"
            if entry["goal"]
            else ""
        )
        say(f"  {name}: {entry['value']}{goal}")
    sys.stdout.write(json.dumps(results) + "\n")
    return 1 if failed else 0


def modules(names: Sequence[str] = ()) -> Iterator[ModuleType]:
    """Yields the modules that measure, in the order of their names."""
    for path in sorted(Path(__file__).parent.glob(f"{_PREFIX}*.py")):
        if names and path.stem.removeprefix(_PREFIX) not in names:
            continue
        module = importlib.import_module(f"tests.bench.{path.stem}")
        if hasattr(module, "measure"):
            yield module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
