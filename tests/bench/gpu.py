"""`make bench-gpu`: embed on a GPU against sentence-transformers there, in float16.

Each part is a process of its own with a limit of time, and tells each figure when it is there: one
that fails, hangs or ends the GPU's context costs what it had still to tell. `python -m
tests.bench.gpu rates graphs` runs some; all together they fit into ten minutes. What a part needs
and prints besides is in `gpu_parts`; a machine that has torch and no network is what `gpu_kit` is
for.

The last line is JSON: the figures, and under `failed` the parts that did not end well; the exit
status is 1 when there are any. Without a CUDA device it is `{}`, and the exit status 77, by which
test runners know what was skipped; `make` takes that for well.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.bench.figures import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOTHING_MEASURED: Final = 77
"""Exit status where there is no CUDA device; automake's for a skipped test."""
PARTS: Final = {"accuracy": 120, "rates": 150, "service": 100, "graphs": 90, "tests": 300}
"""Seconds that each may take, in the order in which they run: what is worth most comes first."""
_ALL_SECONDS = 560
_LEAST_SECONDS = 5
_TEXTS = 8192
Figures = dict[str, dict[str, Any]]


def command_of(part: str, texts: Path) -> list[str]:
    """Returns the command that runs a part."""
    if part == "tests":
        return [
            *(sys.executable, "-m", "pytest", "-m", "gpu", "tests/unit/embed", "-v"),
            # Warnings of another release of a library than the pinned one are no failure.
            *("-p", "no:cacheprovider", "--timeout", "120", "-W", "default"),
        ]
    return [sys.executable, "-m", "tests.bench.gpu_parts", part, str(texts)]


def run_parts(
    commands: Mapping[str, Sequence[str]], limits: Mapping[str, float], *, seconds: float
) -> tuple[Figures, list[str]]:
    """Runs parts one after the other; returns their figures, and the names of those that failed.

    A part writes each figure as one line of JSON, an object of a name and its entry; other lines
    are passed on. Those that find none of the `seconds` left fail as well.
    """
    figures: Figures = {}
    failed = []
    end = time.monotonic() + seconds
    for part, command in commands.items():
        limit = min(limits[part], end - time.monotonic())
        if limit < _LEAST_SECONDS:
            say(f"== {part}: no time is left")
            failed.append(part)
            continue
        say(f"== {part}: {limit:.0f} s at most")
        started = time.monotonic()
        how = _run(command, figures, limit)
        say(f"== {part}: {how or 'done'} after {time.monotonic() - started:.0f} s")
        if how:
            failed.append(part)
    return figures, failed


def _run(command: Sequence[str], figures: Figures, seconds: float) -> str:
    """Runs a part and takes its figures as they come; returns what went wrong, nothing at best."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
    reader = threading.Thread(target=_take, args=(process, figures), daemon=True)
    reader.start()
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "stopped at its limit"
    else:
        return f"failed with status {code}" if code else ""
    finally:  # with whatever it has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(_LEAST_SECONDS)


def _take(process: subprocess.Popen[str], figures: Figures) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                told = None
            if not isinstance(told, dict):
                say("   " + line.rstrip())
                continue
            for name, entry in told.items():
                figures[name] = entry
                goal = f", goal {entry['goal']}: {'met' if entry['met'] else 'MISSED'}"
                say(f"   {name}: {entry['value']}{goal if entry['goal'] is not None else ''}")


def _kept_texts(scratch: Path, given: Path | None) -> Path:
    """Returns a file with texts: those of a file, zipped or not, or of the corpora."""
    kept = scratch / "texts.json"
    if given is not None:
        data = given.read_bytes()
        kept.write_bytes(gzip.decompress(data) if given.suffix == ".gz" else data)
    else:
        from tests.bench.corpus import sample_texts

        kept.write_text(json.dumps(sample_texts(_TEXTS)))
    return kept


def _has_gpu() -> bool:
    """Tells whether there is a device; asked elsewhere, so that no part finds it in use."""
    program = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def main(arguments: Sequence[str]) -> int:
    """Measures and ends with one line of JSON; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seconds", type=float, default=_ALL_SECONDS, help="for all together")
    parser.add_argument("--texts", type=Path, help="a list of texts in JSON, which may be gzipped")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    chosen = [part for part in PARTS if part in (asked.parts or PARTS)]
    started = time.monotonic()
    if not _has_gpu():
        say("There is no CUDA device: nothing is measured.")
        sys.stdout.write("{}\n")
        return NOTHING_MEASURED
    with tempfile.TemporaryDirectory() as scratch:
        texts = _kept_texts(Path(scratch), asked.texts)
        commands = {part: command_of(part, texts) for part in chosen}
        left = asked.seconds - (time.monotonic() - started)
        figures, failed = run_parts(commands, PARTS, seconds=left)
    if failed:
        say(f"failed: {', '.join(failed)}")
    sys.stdout.write(json.dumps(figures | ({"failed": failed} if failed else {})) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
