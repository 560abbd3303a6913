"""A file that one request names by two paths is edited whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.runtime.errors import InvalidRequestError
from tests.unit.io.writing import edit, failed, opened_writer, request, written

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.io.harness import MakeFiles


async def test_two_paths_that_lead_to_one_file_are_refused_before_anything_is_written(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when paths are compared as texts: one edit is made, the other has changed content."""
    top = make_files({"a": "one two", "d/b": "one two", "c": "one two"})
    (top / "l").symlink_to("a")
    (top / "e").symlink_to("d")
    first, second = (0, 3, b"ONE"), (4, 7, b"TWO")
    asked = request(
        *(edit(path, b"one two", first) for path in ("a", "e/b", "c", "none/x")),
        *(edit(path, b"one two", second) for path in ("l", "d/b")),
    )
    async with opened_writer(top, tmp_path / "state") as writer:
        outcomes = await writer.write(asked)
        again = await writer.write(asked)

    for position in (0, 1, 4, 5):
        failed(outcomes[position], InvalidRequestError)
        failed(again[position], InvalidRequestError)
    written(outcomes[2])
    assert [(top / name).read_text() for name in ("a", "d/b", "c")] == [
        "one two", "one two", "ONE two",
    ]  # fmt: skip


async def test_two_hard_links_are_two_files(make_files: MakeFiles) -> None:
    """A write gives each a file of its own. Red when inodes are compared."""
    top = make_files({"a": "one two"})
    (top / "b").hardlink_to(top / "a")
    async with opened_writer(top) as writer:
        asked = request(*(edit(name, b"one two", (0, 3, name.encode())) for name in "ab"))
        for outcome in await writer.write(asked):
            written(outcome)
    assert [(top / name).read_text() for name in "ab"] == ["a two", "b two"]
