"""The process that parses: takes jobs on its standard input, answers on its standard output.

A job is a frame of JSON. Each file of it is answered by a frame as soon as it is done, in order, so
that the other side knows which file a worker died on. Frames are a letter, the length of the
payload in four bytes, and the payload: `h` says that the process is ready, `r` is an answer (the
file's position, then a ParseFilesResponse), `d` ends a job. An empty job, sent when an answer has
come, has the files left that are not begun; it may come too late, and says nothing then.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, BinaryIO

from services.io import convert
from services.io.errors import ParseFailedError
from services.io.model import FileToParse, Root, SymlinkPolicy
from services.io.parser.file import ParseLimits, parse_file
from services.io.parser.grammars import Grammars
from services.io.paths import Tree
from services.runtime.errors import LodestoneError
from services.runtime.parents import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct("<cI")
POSITION = struct.Struct("<I")
READY, RESULT, DONE = b"h", b"r", b"d"


def main() -> int:
    """Serves jobs until standard input ends."""
    options = json.loads(sys.argv[1])
    if not end_with_parent(options["parent"]):
        return 0
    _limit(options["memory_bytes"], options["nice"])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the frames
    grammars = Grammars()
    grammars.warm()
    gc.freeze()  # what the start made is never garbage, and a parse makes many small objects
    _send(answers, READY, b"")
    while (job := _receive(sys.stdin.buffer)) is not None:
        if not job:
            continue
        for position, answer in _answers(json.loads(job), grammars, options["cpu_seconds"]):
            _send(answers, RESULT, POSITION.pack(position) + answer)
        _send(answers, DONE, b"")
    return 0


def _answers(
    job: dict[str, Any], grammars: Grammars, cpu_seconds: float
) -> Iterator[tuple[int, bytes]]:
    """Yields each file's position and response, in order, until more comes on standard input."""
    limits = ParseLimits(**job["limits"])
    files = [FileToParse(index, path, bytes.fromhex(known)) for index, path, known in job["files"]]
    roots = [_root(root) for root in job["roots"]]
    try:
        tree = Tree(roots[0], job["directory"], roots)
    except LodestoneError as error:
        yield from (
            (f.index, convert.failed_message(f.index, error).SerializeToString()) for f in files
        )
        return
    with tree:
        for file in files:
            if select.select((0,), (), (), 0)[0]:
                return  # nobody waits for the rest
            _limit_time(cpu_seconds)
            yield file.index, _answer(tree, file, limits, grammars)


def _answer(tree: Tree, file: FileToParse, limits: ParseLimits, grammars: Grammars) -> bytes:
    try:
        outcome = parse_file(tree, file, limits, grammars)
        return convert.outcome_message(file.index, outcome).SerializeToString()
    except LodestoneError as error:
        failed: LodestoneError = error
    except MemoryError:
        failed = ParseFailedError.at(file.path, "The file takes more memory to parse than it may.")
    except Exception as error:  # noqa: BLE001 - told to the caller as this file's outcome
        failed = ParseFailedError.at(
            file.path, f"The parser failed on this file ({type(error).__name__})."
        )
    return convert.failed_message(file.index, failed).SerializeToString()


def root_fields(root: Root) -> dict[str, Any]:
    """Returns a root as JSON has it."""
    return {
        "id": root.id,
        "path": root.path,
        "symlink_policy": root.symlink_policy.value,
        "read_only": root.read_only,
    }


def _root(fields: dict[str, Any]) -> Root:
    policy = SymlinkPolicy(fields["symlink_policy"])
    return Root(fields["id"], fields["path"], policy, fields["read_only"])


def _limit(memory_bytes: int, nice: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    if nice:
        os.nice(nice)


def _limit_time(cpu_seconds: float) -> None:
    """Has the kernel end this process by SIGXCPU when it uses so much more processor time.

    The parent ends it sooner, by the clock. But a parent that is busy or stopped does not, and what
    a grammar does looks at no signal of Python's.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def _receive(source: BinaryIO) -> bytes | None:
    header = source.read(POSITION.size)
    return source.read(POSITION.unpack(header)[0]) if header else None


def _send(target: BinaryIO, kind: bytes, payload: bytes) -> None:
    target.write(HEADER.pack(kind, len(payload)) + payload)
    target.flush()


if __name__ == "__main__":
    sys.exit(main())
