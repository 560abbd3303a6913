r"""Globs as a caller writes them: what is a path and no pattern, and what lies beneath a folder.

`*` and `?` stay in a folder, `**` crosses folders, and `\` takes the sign after it as it is. A
glob without a slash matches names in any folder; one that begins with a slash begins at the top.
"""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\*?])")


def escape_glob(path: str) -> str:
    """Returns the glob that means this path, whatever characters its name has."""
    return _SPECIAL.sub(r"\\\1", path)


def whole_folder(path: str) -> tuple[str, str]:
    """Returns globs of the file at a path under the tree, or of all beneath the folder there."""
    plain = escape_glob(path)
    return f"/{plain}", f"/{plain}/**"


def beneath(folder: str, glob: str) -> str:
    """Returns a glob of what lies in a folder.

    Args:
        folder: path under the tree, no pattern; empty is the tree.
        glob: of paths under the folder; without a slash, of names anywhere beneath it.
    """
    if not folder:
        return glob
    inner = glob.removeprefix("/") if "/" in glob else f"**/{glob}"
    return f"/{escape_glob(folder)}/{inner}"
