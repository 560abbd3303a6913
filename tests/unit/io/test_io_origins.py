"""A watcher can tell which version of a file was written for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.io.origins import ECHO_SECONDS, Origins

if TYPE_CHECKING:
    from pathlib import Path


def record(origins: Origins, path: Path, origin_id: str) -> None:
    origins.record(path.stat(), path.parent.stat(), path.name, origin_id)


def origin_of(origins: Origins, path: Path) -> str:
    return origins.origin_of(path.stat(), path.parent.stat(), path.name)


def test_a_written_version_has_its_origin_until_the_file_changes(tmp_path: Path) -> None:
    """Red when the path alone is the key: the next writer's change would look like an echo."""
    origins = Origins()
    path = tmp_path / "file"
    path.write_bytes(b"one")
    record(origins, path, "editor-1")

    assert origin_of(origins, path) == "editor-1"

    path.write_bytes(b"longer")
    assert origin_of(origins, path) == ""


def test_the_oldest_versions_are_forgotten_first(tmp_path: Path) -> None:
    """Memory is bounded, whatever is written."""
    origins = Origins(capacity=2)
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(b"x")
        record(origins, path, path.name)

    assert [origin_of(origins, path) for path in paths] == ["", "1", "2"]


def test_what_was_written_long_ago_is_nobodys_echo(tmp_path: Path) -> None:
    """Red when it is kept: a file that others moved back would be withheld from who wrote it."""
    now = [100.0]
    origins = Origins(clock=lambda: now[0])
    path = tmp_path / "file"
    path.write_bytes(b"one")
    record(origins, path, "editor-1")

    now[0] += ECHO_SECONDS - 1
    assert origin_of(origins, path) == "editor-1"
    now[0] += 2
    assert origin_of(origins, path) == ""
