"""Small source trees to index."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

APP = '''"""Answers requests."""

import json


class Router:
    """Finds the handler of a path."""

    def add_route(self, path, handler):
        self.routes[path] = handler

    def find_handler(self, path):
        return self.routes.get(path)


def parse_body(raw):
    """Parses a JSON body."""
    return json.loads(raw)


def render_error(code, message):
    return {"code": code, "message": message}
'''

STORE = """def open_database(url):
    return connect(url, timeout=3)


def close_database(connection):
    connection.rollback()
    connection.close()
"""

SCRIPT = """export function formatPrice(cents) {
  return (cents / 100).toFixed(2) + " EUR";
}
"""


def write_tree(folder: Path, **extra: str) -> Path:
    """Writes a small project; more files are named with `__` for `/` and `_py` for `.py`."""
    files = {"app.py": APP, "db/store.py": STORE, "web/price.js": SCRIPT}
    for name, text in extra.items():
        files[name.replace("__", "/").replace("_py", ".py")] = text
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def close(folder: Path, path: Path) -> None:
    """Takes the right to read a path from all but root, who may enter the folder around it."""
    folder.chmod(0o755)
    path.chmod(0o000)


def edit(path: Path, old: str, new: str) -> None:
    """Replaces one occurrence, which must be there."""
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def write_many(folder: Path, functions: int, *, per_file: int = 25) -> Path:
    """Writes files of small functions, each with a text of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, functions, per_file):
        numbers = range(start, min(start + per_file, functions))
        text = "\n\n".join(
            f"def work_{number}(value):\n    total = value + {number}\n    return total\n"
            for number in numbers
        )
        (folder / f"part_{start:06}.py").write_text(text, encoding="utf-8")
    return folder
