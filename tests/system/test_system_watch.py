"""`lodestone watch`: a person's edits are searched while they work."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from typing import TYPE_CHECKING, Any

from tests.support.stack import finish, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.stack import Lodestone

_SECONDS = 60.0


class _Watch:
    """A `lodestone watch` that runs, and the lines that it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str, what: str) -> str:
        """Returns the first line that holds a text."""

        def found() -> bool:
            assert self.process.poll() is None or any(text in line for line in self.lines), (
                self.process.returncode,
                self.lines,
            )
            return any(text in line for line in self.lines)

        wait_until(found, _SECONDS, what)
        return next(line for line in self.lines if text in line)

    def stop(self) -> int:
        """Presses Ctrl+C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(_SECONDS)
        self._reader.join(_SECONDS)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)


@contextlib.contextmanager
def _watching(product: Lodestone, *arguments: str) -> Iterator[_Watch]:
    watch = _Watch(product.start("watch", *arguments))
    try:
        yield watch
    finally:
        if watch.process.poll() is None:
            watch.process.kill()
        for pipe in (watch.process.stdout, watch.process.stderr):
            if pipe is not None:
                pipe.close()


def _tree(folder: Path) -> Path:
    folder.mkdir()
    (folder / "first.py").write_text("def first():\n    return 1\n", encoding="utf-8")
    return folder


def _status(product: Lodestone, tree: Path) -> dict[str, Any]:
    workspaces = product.run("status", "--json").json["workspaces"]
    found: dict[str, Any] = next(each for each in workspaces if each["path"] == str(tree))
    return found


def test_a_watch_indexes_first_and_then_each_change(product: Lodestone, tmp_path: Path) -> None:
    tree = _tree(tmp_path / "watched")
    with _watching(product, str(tree), "--json") as watch:
        first = json.loads(watch.wait_for('"state"', "the first run"))
        wait_until(
            lambda: (_status(product, tree)["watch"] or {}).get("state") == "watching",
            _SECONDS,
            "the watch is in place",
        )
        (tree / "second.py").write_text("def second():\n    return 2\n", encoding="utf-8")
        told = json.loads(watch.wait_for("second.py", "the change is told"))
        shown = _status(product, tree)
        hits = product.search("second", tree)
        code = watch.stop()

    assert (first["state"], first["trigger"]) == ("succeeded", "caller")
    assert (told["state"], told["trigger"], told["paths"]) == (
        "succeeded",
        "changes",
        ["second.py"],
    )
    assert 0 < told["freshness_seconds"] < 30
    assert shown["live"]
    assert shown["watch"]["freshness_seconds"] is not None
    assert hits[0]["path"] == "second.py"
    assert code == 0
    assert not _status(product, tree)["live"], "Ctrl+C ends the watch"


def test_a_watch_may_be_kept_and_seen_and_ended(product: Lodestone, tmp_path: Path) -> None:
    """A second watch of a folder that is live works, and leaves it live as it found it."""
    tree = _tree(tmp_path / "kept")
    with _watching(product, str(tree), "--keep") as watch:
        watch.wait_for("Run succeeded", "the first run")
        wait_until(lambda: _status(product, tree)["live"], _SECONDS, "it is live")
        assert watch.stop() == 0
    assert _status(product, tree)["live"]

    with _watching(product, str(tree)) as watch:
        watch.wait_for("Run succeeded", "the first run")
        (tree / "third.py").write_text("def third():\n    return 3\n", encoding="utf-8")
        line = watch.wait_for("third.py", "the change is told")
        assert watch.stop() == 0

    assert "searched" in line
    assert "live, watching" in product.run("status").stdout
    ended = product.run("unwatch", str(tree), "--json")
    assert ended.json["live"] is False
    assert not _status(product, tree)["live"]


def test_a_watch_of_no_folder_starts_nothing(product: Lodestone, tmp_path: Path) -> None:
    done = finish(product.start("watch", str(tmp_path / "none")))

    assert done.code == 2
    assert "no such folder" in done.stderr
