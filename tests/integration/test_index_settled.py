"""An unchanged tree costs its scan alone, once its files are settled."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from tests.integration.indexing import indexing, until

if TYPE_CHECKING:
    from pathlib import Path

SETTLED_NS = 2_100_000_000
FILES = 12


def _write_tree(folder: Path) -> list[Path]:
    paths = [folder / f"part_{number}.py" for number in range(FILES)]
    folder.mkdir()
    for number, path in enumerate(paths):
        path.write_text(f"def work_{number}(value):\n    return value + {number}\n")
    return paths


async def test_only_files_that_are_not_settled_are_parsed_again(
    roots: Path, sockets: Path, migrated_url: str
) -> None:
    """Red for the unchanged tree when a parse calls no file settled; each is then parsed again.

    Red for the file from the future when each is called settled: nothing shows that it was not
    written to since, and it is not read.
    """
    paths = _write_tree(roots / "tree")
    newest = max(path.stat().st_ctime_ns for path in paths)
    until_settled = newest + SETTLED_NS
    async with indexing(roots, sockets, migrated_url) as services:
        await services.create("tree", "tree")
        await until(lambda: time.time_ns() > until_settled)
        first = await services.succeed("tree")
        second = await services.succeed("tree")

        future = time.time() + 3600
        os.utime(paths[0], (future, future))
        touched = await services.succeed("tree")
        again = await services.succeed("tree")

    assert (first.files_to_parse, first.files_scanned) == (FILES, FILES)
    assert (second.files_to_parse, second.files_scanned) == (0, FILES)
    assert (touched.files_to_parse, again.files_to_parse) == (1, 1)
    assert (touched.forwards, again.forwards) == (0, 0)
