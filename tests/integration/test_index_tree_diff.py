"""What a scan finds to be gone: held in little memory, and never what it did not look at."""

from __future__ import annotations

import errno
import os
import random
import string
import subprocess
import tracemalloc
from typing import TYPE_CHECKING, Any

from services.indexer.io_client import IoClient
from services.indexer.patience import Patience
from services.indexer.tree_diff import TreeDiff
from services.io.app import IoApp
from services.io.settings import IoSettings
from services.runtime.channel import connect
from services.runtime.errors import DependencyUnavailableError
from tests.integration.checks import check_index
from tests.integration.indexing import Service, State
from tests.integration.replicas import replica, workspace_with_model
from tests.integration.samples import write_tree

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    import pytest

    from services.indexer.io_client import ScanBatch
    from services.indexer.storage.database import Database
    from tests.integration.indexing import Indexing

_FILES = 30_000
_FILL = """
INSERT INTO files (workspace_id, path, state, digest, recipe, language, line_count, size,
  mtime_ns, ctime_ns, inode, settled)
SELECT 1, 'gone/' || repeat('folder/', 10) || i || '.py', 'indexed',
  decode(repeat('00', 32), 'hex'), 'r', 'python', 1, 1, 1, 1, 1, true FROM generate_series(1, $1) i
"""


async def test_files_that_are_gone_are_held_by_their_ids(
    roots: Path, sockets: Path, database: Database
) -> None:
    """Red with a list of their paths: 4.5 MB for these, and half a megabyte with ids."""
    stores = replica(database)
    workspace, _ = await workspace_with_model(stores)
    write_tree(roots / "tree")
    await stores.value(_FILL + " RETURNING 1", _FILES)
    await stores.queue(workspace)
    run = await stores.take()
    settings = IoSettings(listen=f"unix:{sockets}/io", roots=f"trees={roots}", parse_workers=1)
    service = Service(settings, lambda: IoApp(settings))
    await service.start()
    sent: list[Any] = []

    async def send(files: Any) -> None:
        sent.extend(files)

    async with connect(settings.listen) as channel:
        diff = TreeDiff(
            run,
            workspace.tree,
            "r",
            None,
            io=IoClient(channel, 60.0),
            files=stores.files,
            ledger=stores.ledger,
            patience=Patience(60.0),
            batch_files=32,
            send=send,
        )
        tracemalloc.start()
        result = await diff.find()
        held_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    await service.stop()

    assert len(sent) == 3
    assert len(result.gone) == _FILES
    assert held_bytes < 50 * _FILES


async def test_a_folder_that_a_broken_off_scan_could_not_look_at_keeps_its_files(
    services: Indexing, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit is met at a folder, io goes away further on, and is well when it is back.

    Red when the second walk knows nothing of what the first could not look at: it passes over the
    files there, as they sort before what was compared, and the first has noted them as gone.
    """
    write_tree(roots / "tree")
    await services.create("tree", "tree")
    await services.succeed("tree")
    assert "db/store.py" in {hit.path for hit in await services.search("tree", "store")}
    scan, open_path = IoClient.scan, os.open
    refused: list[Any] = []
    broken: list[Any] = []

    def refuse_once(path: Any, *args: Any, **named: Any) -> int:
        if path == "db" and not refused:
            refused.append(path)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_path(path, *args, **named)

    async def break_off_once(*args: Any) -> AsyncGenerator[ScanBatch]:
        async for batch in scan(*args):
            yield batch
            if not broken:
                broken.append(batch)
                raise DependencyUnavailableError("Gone.", metadata={"dependency": "io"})

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse_once)
        patched.setattr(IoClient, "scan", break_off_once)
        run = await services.run("tree")

    assert refused
    assert broken
    assert "db/store.py" in {hit.path for hit in await services.search("tree", "store")}
    assert list(run.warnings) == ["db could not be looked at: Too many files are open."]


async def test_a_tree_that_is_removed_under_its_scan_keeps_its_files(
    services: Indexing, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when what such a scan did not find is removed though the tree is not there."""
    (write_tree(roots / "tree") / "app.py").unlink()
    await services.create("tree", "tree")
    await services.succeed("tree")
    open_path = os.open

    def remove_before(path: Any, *args: Any, **named: Any) -> int:
        if path == "db":
            subprocess.run(["rm", "-r", roots / "tree"], check=True)
        return open_path(path, *args, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", remove_before)
        run = await services.run("tree")
    (write_tree(roots / "tree") / "app.py").unlink()

    assert run.state == State.STATE_FAILED
    assert "folder" in run.error.message
    assert run.progress.nodes_removed == 0
    assert (await services.succeed("tree")).forwards == 0


async def test_a_path_that_no_row_can_hold_is_a_warning(services: Indexing, roots: Path) -> None:
    """Red when it is stored: an index of PostgreSQL refuses it, and with it the whole run."""
    words = random.Random(1)  # a path that repeats itself is compressed, and would do
    fd = os.open(write_tree(roots / "tree"), os.O_RDONLY)
    for _ in range(16):
        name = "".join(words.choices(string.ascii_letters, k=180))
        os.mkdir(name, dir_fd=fd)
        above, fd = fd, os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(above)
    os.close(os.open("deep.py", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    await services.create("tree", "tree")

    run = await services.run("tree")

    assert run.state == State.STATE_SUCCEEDED_WITH_WARNINGS
    (warning,) = run.warnings
    assert warning.endswith("/deep.py could not be looked at: The path has more than 2400 bytes.")
    assert "db/store.py" in {hit.path for hit in await services.search("tree", "store")}
    assert await check_index(services, mark=True) == []
