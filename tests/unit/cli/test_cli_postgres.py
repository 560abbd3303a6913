"""The embedded PostgreSQL is closed to others, and comes back from whatever killed it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.cli.accounts import Account, choose_account, command_as, first_closed
from services.cli.postgres import EmbeddedPostgres
from services.cli.postgres_binaries import find_binaries, reachable_binaries
from services.cli.postgres_cluster import PostgresLayout
from services.cli.processes import is_alive, wait_gone
from services.cli.sockets import POSTGRES_SOCKET
from services.runtime.exits import ExitCode, StartError
from tests.support.postgres import Database, make_reachable_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.cli.processes import ProcessId

pytestmark = pytest.mark.slow


def _layout(folder: Path) -> PostgresLayout:
    return PostgresLayout(
        data=folder / "postgres",
        sockets=folder / "postgres-run",
        password=folder / "postgres.password",
        log=folder / "postgres.log",
        binaries=reachable_binaries(folder / "postgres-bin", choose_account(os.environ)),
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    made = make_reachable_folder()
    yield made
    shutil.rmtree(made)


@pytest.fixture
def server(folder: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(_layout(folder), choose_account(os.environ))


@pytest.fixture(scope="module")
def standing_folder() -> Iterator[Path]:
    made = make_reachable_folder()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def standing(standing_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server for the tests that only ask it, or leave it as good as it was."""
    server = EmbeddedPostgres(_layout(standing_folder), choose_account(os.environ))
    server.start()
    yield server
    server.stop(server.start())


@pytest.fixture
def running(standing: EmbeddedPostgres) -> ProcessId:
    """The process of the standing server."""
    return standing.start()


def test_it_has_the_extensions_and_keeps_checksums(
    standing: EmbeddedPostgres, running: ProcessId
) -> None:
    database = Database(standing.url)

    names = database.execute("SELECT extname FROM pg_extension ORDER BY 1").split()

    assert names == ["btree_gin", "plpgsql", "vector"]
    assert database.execute("SHOW data_checksums") == "on"
    assert database.execute("SHOW fsync") == "on"
    assert database.execute("SHOW server_encoding") == "UTF8"


def test_nobody_gets_in_without_the_password(
    standing: EmbeddedPostgres, running: ProcessId
) -> None:
    """Goes red when pg_hba.conf trusts local connections (planted once, seen red)."""
    scheme, _, rest = standing.url.partition("lodestone:")
    wrong = Database(f"{scheme}lodestone:wrong@{rest.partition('@')[2]}")

    with pytest.raises(AssertionError, match="password authentication failed"):
        wrong.execute("SELECT 1")


def test_it_listens_on_no_port(
    standing: EmbeddedPostgres, running: ProcessId, standing_folder: Path
) -> None:
    assert Database(standing.url).execute("SHOW listen_addresses") == ""
    assert (standing_folder / "postgres-run").stat().st_mode & 0o777 == 0o700
    assert (standing_folder / "postgres.password").stat().st_mode & 0o777 == 0o600


def test_it_never_runs_as_root(running: ProcessId) -> None:
    assert Path(f"/proc/{running.pid}").stat().st_uid != 0


def test_starting_twice_takes_over_the_running_server(
    standing: EmbeddedPostgres, running: ProcessId
) -> None:
    assert standing.start() == running


def test_it_comes_back_after_a_kill_with_what_was_committed(
    standing: EmbeddedPostgres, running: ProcessId
) -> None:
    Database(standing.url).execute("CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(running.pid, signal.SIGKILL)
    assert wait_gone(running, 10)

    again = standing.start()

    assert again != running
    assert not is_alive(running)
    assert Database(standing.url).execute("SELECT answer FROM kept") == "42"


def test_a_lock_file_whose_pid_was_reused_is_cleared(
    server: EmbeddedPostgres, folder: Path
) -> None:
    """PostgreSQL alone refuses to start: the pid lives, as another process of its account.

    Goes red when the lock files of a dead server are left to PostgreSQL (planted, seen red).
    """
    server.stop(server.start())
    account = choose_account(os.environ)
    other = subprocess.Popen(command_as(account, ["/bin/sleep", "60"]), cwd="/")
    text = f"{other.pid}\n{folder / 'postgres'}\n"
    (folder / "postgres" / "postmaster.pid").write_text(text)
    (folder / "postgres-run" / f"{POSTGRES_SOCKET}.lock").write_text(text)

    process = server.start()

    assert is_alive(process)
    assert other.poll() is None
    server.stop(process)
    other.kill()
    other.wait()


def test_a_server_that_is_out_of_sight_keeps_its_folder(
    standing: EmbeddedPostgres,
    running: ProcessId,
    standing_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one of another container is.

    Red when its lock file is taken for a dead server's: it stops once it misses that, or two write.
    """
    pid_file = standing_folder / "postgres" / "postmaster.pid"
    before = pid_file.read_text()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("services.cli.postgres.identify", lambda _: None)
        elsewhere.setattr("services.cli.postgres._ORPHANS_SECONDS", 0.3)

        with pytest.raises(StartError, match="Another PostgreSQL runs over") as refused:
            standing.start()
        with pytest.raises(StartError, match="Another PostgreSQL runs over"):
            standing.require_free()

    assert refused.value.code == ExitCode.DATA_FOLDER
    assert pid_file.read_text() == before
    assert standing.start() == running
    assert Database(standing.url).execute("SELECT 1") == "1"


def test_a_half_made_cluster_is_made_anew(server: EmbeddedPostgres, folder: Path) -> None:
    (folder / "postgres.tmp").mkdir()
    (folder / "postgres.tmp" / "PG_VERSION").write_text("18")

    process = server.start()

    assert not (folder / "postgres.tmp").exists()
    server.stop(process)


def test_a_set_up_that_fails_leaves_nothing_behind(folder: Path) -> None:
    binaries = folder / "broken"
    (binaries / "bin").mkdir(parents=True)
    (binaries / "bin" / "initdb").write_text(
        "#!/bin/sh\necho 'initdb: error: could not write: No space left on device'\nexit 1\n"
    )
    (binaries / "bin" / "initdb").chmod(0o755)
    whole = _layout(folder)
    broken = PostgresLayout(whole.data, whole.sockets, whole.password, whole.log, binaries)

    with pytest.raises(StartError) as refusal:
        EmbeddedPostgres(broken, choose_account(os.environ)).start()

    assert refusal.value.code == ExitCode.DISK_FULL
    assert not list(folder.glob("postgres*/*"))
    assert not (folder / "postgres.tmp").exists()


def test_another_major_version_is_refused(server: EmbeddedPostgres, folder: Path) -> None:
    (folder / "postgres").mkdir()
    (folder / "postgres" / "PG_VERSION").write_text("15\n")

    with pytest.raises(StartError, match="PostgreSQL 15") as refusal:
        server.start()

    assert refusal.value.code == ExitCode.DATA_FOLDER
    assert [entry.name for entry in (folder / "postgres").iterdir()] == ["PG_VERSION"]


def test_a_server_that_does_not_start_tells_its_own_reason(
    server: EmbeddedPostgres, folder: Path
) -> None:
    server.stop(server.start())
    (folder / "postgres" / "postgresql.conf").write_text("nonsense = 1\n")

    with pytest.raises(StartError, match="configuration file"):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another account")
def test_a_closed_folder_is_named_with_what_to_do(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    (closed / "data").mkdir(mode=0o711)
    server = EmbeddedPostgres(_layout(closed / "data"), choose_account(os.environ))

    with pytest.raises(StartError, match=f"chmod o\\+x {closed}") as refusal:
        server.start()

    assert refusal.value.code == ExitCode.DATA_FOLDER


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another account")
def test_binaries_under_a_closed_home_are_copied_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(tempfile.mkdtemp(dir=folder))
    shutil.copytree(find_binaries(), home / "pginstall", symlinks=True)
    monkeypatch.setattr("services.cli.postgres_binaries.find_binaries", lambda: home / "pginstall")
    account = choose_account(os.environ)
    assert account is not None

    first = reachable_binaries(folder / "postgres-bin", account)
    stamp = first.stat().st_mtime_ns
    second = reachable_binaries(folder / "postgres-bin", account)

    assert first == second
    assert second.stat().st_mtime_ns == stamp
    assert first_closed(first / "bin", account) is None
    done = subprocess.run(
        command_as(account, [str(first / "bin" / "postgres"), "-V"]), check=True, cwd="/"
    )
    assert done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another account")
def test_a_command_of_another_account_runs_nothing_that_is_registered_for_forks() -> None:
    """What gRPC registers aborts a child that is not yet the command: a server did not start.

    Red when the account is left to subprocess, which forks for it (seen).
    """
    program = """
import ctypes, os
from services.cli.accounts import choose_account
from services.cli.postgres_cluster import run_as
forks = []
hook = ctypes.CFUNCTYPE(None)(lambda: forks.append(1))
ctypes.CDLL(None).__register_atfork(hook, None, None, None)
done = run_as(choose_account(os.environ), ["/usr/bin/id", "-G"])
os.waitpid(os.fork() or os._exit(0), 0)
print(done.stdout.strip(), done.returncode, len(forks))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    account = choose_account(os.environ)

    assert account is not None
    assert done.stdout.split() == [str(account.gid), "0", "1"], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another account")
@pytest.mark.parametrize("name", ["root", "no-such-user"])
def test_a_wrong_account_is_told(name: str) -> None:
    with pytest.raises(StartError, match="LODESTONE_POSTGRES_USER") as refusal:
        choose_account({"LODESTONE_POSTGRES_USER": name})

    assert refusal.value.code == ExitCode.USAGE


def test_permission_bits_of_owner_group_and_others_decide(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    status = inner.stat()
    owner = Account("owner", status.st_uid, 1)
    member = Account("member", status.st_uid + 1, status.st_gid)
    other = Account("other", status.st_uid + 1, status.st_gid + 1)

    inner.chmod(0o610)
    closed_for = [who.name for who in (owner, member, other) if first_closed(inner, who) == inner]

    assert closed_for == ["owner", "other"]
