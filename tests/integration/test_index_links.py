"""Files behind links stay in the index while nobody can look at them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from services.io.paths import Tree

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.integration.indexing import Indexing


async def test_a_file_behind_a_link_outlives_a_scan_that_cannot_look_at_it(
    services: Indexing, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when the scan takes the link as one that is not followed, or only a folder as unknown."""
    (roots / "shared").mkdir()
    (roots / "shared" / "linked.py").write_text("def behind_a_link():\n    return 1\n")
    (roots / "tree").mkdir()
    (roots / "tree" / "linked.py").symlink_to("../shared/linked.py")
    (roots / "tree" / "folder").symlink_to("../shared")
    await services.create("tree", "tree")
    await services.succeed("tree")
    before = {hit.path for hit in await services.search("tree", "behind_a_link")}

    def refused(tree: Tree, path: str) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(Tree, "open_link", refused)
        await services.run("tree")
    after = {hit.path for hit in await services.search("tree", "behind_a_link")}

    assert before == {"linked.py", "folder/linked.py"}
    assert after == before


async def test_a_link_to_a_folder_beside_files_of_its_name_is_indexed(
    services: Indexing, roots: Path
) -> None:
    """Red when the scan tells `lib/linked.py` before `lib.py`: each run takes io for broken."""
    (roots / "shared").mkdir()
    (roots / "shared" / "linked.py").write_text("def behind_a_link():\n    return 1\n")
    (roots / "tree").mkdir()
    (roots / "tree" / "lib.py").write_text("def beside_a_link():\n    return 1\n")
    (roots / "tree" / "lib").symlink_to("../shared")
    await services.create("tree", "tree")
    for _ in range(2):
        await services.succeed("tree")
        found = {hit.path for hit in await services.search("tree", "beside and behind a link")}
        assert found == {"lib.py", "lib/linked.py"}
