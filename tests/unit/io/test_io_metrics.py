"""What io counts of checks, writes and watches is what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blake3 import blake3
from prometheus_client import REGISTRY

from lodestone.io.v1 import (
    edit_service_pb2_grpc,
    scan_service_pb2,
    scan_service_pb2_grpc,
    tree_pb2,
)
from tests.unit.io.harness import MakeFiles, serve
from tests.unit.io.test_io_edit_service import creation, edit_of, edits
from tests.unit.io.watching import wait_for, watch

if TYPE_CHECKING:
    from pathlib import Path

TREE = tree_pb2.Tree(root="roots/test")


class Grown:
    """How much values of io's metrics have grown since this was made."""

    def __init__(self) -> None:
        self._before = self._values()

    def of(self, name: str) -> dict[str, float]:
        """Returns what grew or shrank of a series, by the values of its labels."""
        return {
            " ".join(labels): value - self._before.get((series, labels), 0.0)
            for (series, labels), value in self._values().items()
            if series == f"lodestone_io_{name}" and value != self._before.get((series, labels), 0.0)
        }

    def _values(self) -> dict[tuple[str, tuple[str, ...]], float]:
        return {
            (
                sample.name,
                tuple(sample.labels[name] for name in sorted(sample.labels)),
            ): sample.value
            for family in REGISTRY.collect()
            for sample in family.samples
        }


async def test_files_of_a_check_count_by_their_verdict(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    top = make_files({"same.py": "same", "other.py": "now", "folder/x.py": ""})
    known = {
        "same.py": b"same",
        "other.py": b"then",
        "gone.py": b"",
        "gone2.py": b"",
        "folder": b"",
    }
    files = [
        scan_service_pb2.KnownFile(path=path, digest=blake3(content).digest())
        for path, content in known.items()
    ]
    grown = Grown()
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = scan_service_pb2_grpc.ScanServiceStub(channel)
        await stub.CheckFiles(scan_service_pb2.CheckFilesRequest(tree=TREE, files=files))

    counted = {"unchanged": 1, "changed": 1, "gone": 2, "unknown": 1}
    assert grown.of("checked_files_total") == counted
    assert grown.of("check_seconds_count") == {"": 1}


async def test_files_of_writes_count_once_and_repeated_requests_as_that(
    make_files: MakeFiles, tmp_path: Path
) -> None:
    """Red when a repeated request counts its files again."""
    top = make_files({"a.py": "one two", "b.py": "b"})
    grown = Grown()
    async with serve(top, tmp_path / "s") as channel:
        stub: Any = edit_service_pb2_grpc.EditServiceStub(channel)
        asked = edits(
            edit_of("a.py", b"one two", 0, 3, b"1"),
            edit_of("b.py", b"b", 0, 1, b"B"),
            edit_of("gone.py", b"", 0, 0, b""),
        )
        await stub.ApplyEdits(asked)
        await stub.ApplyEdits(asked)
        await stub.CreateFile(creation("c.py", b"c"))

    assert grown.of("written_files_total") == {
        "edit written": 2,
        "edit failed": 1,
        "create written": 1,
    }
    assert grown.of("writes_repeated_total") == {"": 1}
    assert grown.of("write_seconds_count") == {"": 3}


def test_watches_count_what_they_watch_while_they_do(make_files: MakeFiles) -> None:
    """Red when folders that went stay counted."""
    top = make_files({"a.py": "a", "d/b.py": "b", "d/e/c.py": "c"})
    grown = Grown()
    with watch(top) as watched:
        watched.events()
        before = Grown()
        (top / "a.py").write_text("changed")
        (top / "d/b.py").unlink()
        watched.events()

        assert grown.of("watched_trees") == {"": 1}
        assert grown.of("watched_folders") == {"": 3}
        told = before.of("watch_events_total")
        assert (told["modified"], told["removed"]) == (1, 1)
        (top / "d/e/c.py").unlink()
        (top / "d/e").rmdir()
        watched.events()
        wait_for(lambda: grown.of("watched_folders") == {"": 2})
    assert grown.of("watched_trees") == grown.of("watched_folders") == {}
