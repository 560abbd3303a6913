"""Backups as docs/operations.md tells them: what is restored is the index that was there."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import asyncpg
import pytest

from services.cli.accounts import choose_account
from services.cli.postgres_binaries import find_binaries, reachable_binaries
from services.cli.postgres_cluster import run_as
from tests.integration.oracle import rows_of
from tests.support.invariants import broken_rules
from tests.support.postgres import make_reachable_folder, running
from tests.support.postgres_server import Server
from tests.support.stack import lodestone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TABLES = ("files", "nodes", "node_terms", "embedding_cache", "runs", "alembic_version")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's account may write to."""
    folder = make_reachable_folder()
    account = choose_account(os.environ)
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.timeout(180)
async def test_a_dump_is_restored_and_the_product_goes_on_with_it(
    flask: Path, folder: Path
) -> None:
    """pg_dump of the running product, pg_restore into an empty server; then an edit costs an edit.

    Planted once: a dump without node_terms.
    """
    for product in lodestone(EMBED_MODEL="hashing"):
        product.index(flask)
        url = product.database_url()
        (workspace,) = (each["workspace"] for each in product.run("workspaces", "--json").json)
        before = await rows_of(url, workspace)
        counts = await _counts(url)
        _run("pg_dump", "--format=custom", f"--file={folder}/lodestone.dump", url)

    with running() as server:
        restored = server.create()
        target = f"--dbname={restored}"
        _run(
            "pg_restore", "--clean", "--if-exists", "--no-owner", target, f"{folder}/lodestone.dump"
        )
        assert await _counts(restored) == counts
        assert await rows_of(restored, workspace) == before
        assert await broken_rules(restored) == []
        (flask / "new.py").write_text("def added_after_the_backup():\n    return 1\n", "utf-8")
        for product in lodestone(EMBED_MODEL="hashing", DATABASE_URL=restored):
            report = product.index(flask)
            assert report["forwards"] <= 2, report
            assert product.search("added_after_the_backup", flask)[0]["path"].endswith("new.py")
        server.drop(restored)


@pytest.mark.timeout(120)
async def test_a_base_backup_starts_as_the_server_that_it_is_of(folder: Path) -> None:
    """pg_basebackup of a running server; a new one over the copy holds what was committed."""
    account = choose_account(os.environ)
    first = make_reachable_folder()
    server = Server(first)
    try:
        server.database.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) i")
        with (first / "postgres" / "pg_hba.conf").open("a", encoding="utf-8") as rules:
            rules.write("local replication all scram-sha-256\n")
        server.database.execute("SELECT pg_reload_conf()")
        binaries = reachable_binaries(folder / "postgres-bin", account)
        command = [str(binaries / "bin" / "pg_basebackup"), f"--pgdata={folder}/postgres"]
        command += ["--checkpoint=fast", f"--dbname={server.database.url}"]
        done = run_as(account, command)
        assert done.returncode == 0, done.stdout
    finally:
        server.stop()
    shutil.copy2(first / "postgres.password", folder)
    shutil.rmtree(first)
    if account is not None:
        shutil.rmtree(folder / "postgres-run", ignore_errors=True)

    copy = Server(folder)
    try:
        assert copy.database.execute("SELECT sum(i) FROM kept") == "500500"
    finally:
        copy.stop()


async def _counts(url: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    counts = {
        table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in _TABLES
    }
    await connection.close()
    return counts


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [find_binaries() / "bin" / program, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
