"""What a tool searches when its folder lies inside a workspace's tree."""

from __future__ import annotations

import pytest

from services.mcp.backend import Place


@pytest.mark.parametrize(
    ("prefix", "paths", "globs"),
    [
        ("", [], []),
        ("", ["*.py", "src/**"], ["*.py", "src/**"]),
        ("src", [], ["/src", "/src/**"]),
        ("we*rd", [], [r"/we\*rd", r"/we\*rd/**"]),
        ("src", ["*.py"], ["/src/**/*.py"]),
        ("src", ["lib/**", "/a.py"], ["/src/lib/**", "/src/a.py"]),
        ("src", ["src/a.py"], ["/src/src/a.py", "/src/a.py"]),
        ("src", ["/src/**"], ["/src/src/**", "/src/**"]),
        ("src", ["srcs/a.py"], ["/src/srcs/a.py"]),
        ("we*rd", ["we*rd/a.py"], [r"/we\*rd/we*rd/a.py", r"/we\*rd/a.py"]),
        ("we*rd", [r"we\*rd/a.py"], [r"/we\*rd/we\*rd/a.py", r"/we\*rd/a.py"]),
        ("a.py", ["a.py"], ["/a.py/**/a.py", "/a.py", "/a.py/**"]),
    ],
)
def test_globs_are_of_what_lies_in_the_folder(
    prefix: str, paths: list[str], globs: list[str]
) -> None:
    """Of paths as hits tell them, and of those under the folder; never of what lies outside."""
    assert Place("workspaces/tree", prefix).globs(paths) == tuple(globs)
