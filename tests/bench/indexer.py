"""`make bench-indexer`: what the indexer's own benchmarks measure. The last line is JSON.

Each module `indexer_<topic>` beside this one with a `measure` takes part.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.figures import say


def main() -> int:
    """Measures everything; returns 0 also where a goal is missed: the figures tell."""
    figures: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(__file__).parent.glob("indexer_*.py")):
        module = importlib.import_module(f"tests.bench.{path.stem}")
        if not hasattr(module, "measure"):
            continue
        say(f"{path.stem} ...")
        scratch = Path(tempfile.mkdtemp(prefix="bench-"))
        try:
            figures |= module.measure(scratch)
        finally:
            shutil.rmtree(scratch)
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
