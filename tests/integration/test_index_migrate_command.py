"""The schema comes from a command of its own, which a cluster runs before new replicas start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from services.indexer.storage.migrate import HEAD
from services.runtime.exits import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.postgres import Database

_NOWHERE = "postgresql://user:canary-secret@127.0.0.1:1/none"
_TLS = "sslmode=verify-full&sslrootcert="


def _migrate(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.indexer.migrate"],
        env={**os.environ, "LODESTONE_DATABASE_URL": url, "LODESTONE_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_migrates_and_may_come_again(
    database_server: Database, database_url: str
) -> None:
    events = []
    for _ in range(2):
        done = _migrate(database_url)
        assert done.returncode == 0, done.stderr
        events.append([json.loads(line)["event"] for line in done.stderr.splitlines()])

    assert events == [["schema_migrated", "schema_ready"], ["schema_ready"]]
    version = database_server.execute("SELECT version_num FROM alembic_version", database_url)
    assert version == HEAD


def test_a_database_that_is_away_is_one_line_and_a_code_that_is_tried_again() -> None:
    done = _migrate(_NOWHERE)

    assert done.returncode == ExitCode.UNAVAILABLE
    assert done.stderr.count("\n") == 1
    assert "canary-secret" not in done.stderr


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The driver's own error is of a file, and does not say of which."""
    missing = tmp_path / "ca.crt"

    done = _migrate(f"{_NOWHERE}?{_TLS}{missing}")

    assert done.returncode == ExitCode.UNAVAILABLE
    assert f"sslrootcert names {missing}, which cannot be read" in done.stderr
    assert "canary-secret" not in done.stderr
