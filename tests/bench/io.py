"""`make bench-io`: every benchmark of the io service, one after the other. The last line is JSON.

A module `io_<topic>.py` beside this one that has `measure(scratch)` is a benchmark; each gets a new
empty folder. One that fails is told on standard error, and the exit code is then 1.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests.bench.figures import say


def main() -> int:
    """Runs them all and prints their figures as one line."""
    figures: dict[str, dict[str, Any]] = {}
    failed = []
    for path in sorted(Path(__file__).parent.glob("io_*.py")):
        module = importlib.import_module(f"tests.bench.{path.stem}")
        if not hasattr(module, "measure"):
            continue
        say(path.stem)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found = module.measure(Path(scratch))
            except Exception:  # noqa: BLE001 - the others are measured all the same
                traceback.print_exc()
                failed.append(path.stem)
                continue
        assert not figures.keys() & found.keys(), f"{path.stem} names a figure twice"
        figures |= found
    if failed:
        say(f"failed: {', '.join(failed)}")
    sys.stdout.write(json.dumps(figures) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
