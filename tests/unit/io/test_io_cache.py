"""A hit holds what the file holds."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from services.io import metrics
from services.io.cache import MAX_SHARE, FileBytes, FileCache
from services.io.content import file_digest
from services.io.errors import PathOutsideTreeError
from services.io.loader import FileLoader
from services.io.model import SymlinkPolicy
from tests.unit.io.harness import MakeFiles, open_tree

if TYPE_CHECKING:
    from pathlib import Path

HOUR_NS = 3600 * 10**9


def later_ns() -> int:
    """A clock by which every file was touched long ago."""
    return time.time_ns() + HOUR_NS


@pytest.fixture
def cache() -> FileCache:
    return FileCache(1 << 20, later_ns)


def served(outcome: str) -> float:
    return float(metrics.READ_FILES.labels(outcome)._value.get())


def read_into(cache: FileCache, path: Path) -> os.stat_result:
    before = path.stat()
    cache.put(before, path.stat(), FileBytes.of(path.read_bytes()))
    return before


def test_a_file_is_read_once_while_it_stays_as_it_is(
    make_files: MakeFiles, cache: FileCache
) -> None:
    loader = FileLoader(1000, cache)
    before = served("cached"), served("read")
    with open_tree(make_files({"a": "text"})) as tree:
        assert loader.load(tree, "a") == loader.load(tree, "a") == (b"text", file_digest(b"text"))
    assert (served("cached"), served("read")) == (before[0] + 1, before[1] + 1)


def test_the_metric_tells_what_the_cache_holds(make_files: MakeFiles, cache: FileCache) -> None:
    loader = FileLoader(1000, cache)
    with open_tree(make_files({"a": "text", "b": "more"})) as tree:
        for path in ("a", "b", "a"):
            loader.load(tree, path)
            assert metrics.CACHE_BYTES._value.get() == cache.held_bytes > 0


def test_an_edit_of_the_same_size_with_the_old_time_put_back_is_noticed(
    make_files: MakeFiles, cache: FileCache
) -> None:
    """Red when the time of the last status change is not in the key: nobody can put that back."""
    top = make_files({"a": "one"})
    loader = FileLoader(1000, cache)
    with open_tree(top) as tree:
        loader.load(tree, "a")
        status = (top / "a").stat()
        (top / "a").write_text("two")
        os.utime(top / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert loader.load(tree, "a").data == b"two"
        (top / "b").write_text("six")
        os.utime(top / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
        (top / "b").replace(top / "a")
        assert loader.load(tree, "a").data == b"six"


def test_a_file_that_was_touched_just_now_is_not_kept(tmp_path: Path) -> None:
    """Red without the rule for racily clean entries: the next edit might look the same."""
    cache = FileCache(1 << 20)
    (tmp_path / "a").write_text("text")
    assert cache.get(read_into(cache, tmp_path / "a")) is None
    assert cache.held_bytes == 0


def test_what_was_read_while_the_file_changed_is_not_kept(tmp_path: Path, cache: FileCache) -> None:
    """Red when the second look is the only one, or the length is not compared."""
    path = tmp_path / "a"
    path.write_text("text")
    before = path.stat()
    path.write_text("TEXT")
    cache.put(before, path.stat(), FileBytes.of(b"text"))
    cache.put(path.stat(), path.stat(), FileBytes.of(b"tex"))
    assert cache.get(path.stat()) is None


def test_the_file_that_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    """Bytes are bounded, and counted as they come and go."""
    cache = FileCache(16_000, later_ns)
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.write_bytes(b"x" * 1000)
        read_into(cache, path)
        read_into(cache, path)  # again: it replaces itself
        assert cache.get(paths[0].stat()), "what is used stays"
    kept = [path for path in paths if cache.get(path.stat())]
    assert kept == [paths[0], *paths[-(len(kept) - 1) :]]
    assert len(kept) * 1000 < cache.held_bytes <= 16_000


def test_one_large_file_does_not_push_out_all_others(tmp_path: Path, cache: FileCache) -> None:
    (tmp_path / "a").write_bytes(b"x" * ((1 << 20) // MAX_SHARE))
    assert cache.get(read_into(cache, tmp_path / "a")) is None


def test_the_cache_opens_no_way_around_the_policy(make_files: MakeFiles, cache: FileCache) -> None:
    """Red when the cache is asked by path before the file is opened."""
    top = make_files({"one/a": "text", "two/b": "x"})
    (top / "two/link").symlink_to("../one/a")
    loader = FileLoader(1000, cache)
    with open_tree(top / "one") as tree:
        loader.load(tree, "a")
    with open_tree(top) as tree:
        assert loader.load(tree, "two/link").data == b"text"
    for policy in (SymlinkPolicy.DENY, SymlinkPolicy.WITHIN_ROOT):
        with open_tree(top / "two", policy) as tree, pytest.raises(PathOutsideTreeError):
            loader.load(tree, "link")
