"""The embedded PostgreSQL of a data folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.cli.accounts import USER_VARIABLE, choose_account, owner_of
from services.cli.postgres import EmbeddedPostgres
from services.cli.postgres_binaries import reachable_binaries
from services.cli.postgres_cluster import PostgresLayout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.cli.folder import DataFolder
    from services.cli.sockets import RunFolder


def embedded_database(
    folder: DataFolder, run: RunFolder, environment: Mapping[str, str]
) -> EmbeddedPostgres:
    """Returns the server of a data folder, started or not."""
    account = choose_account(environment)
    if account is not None and not environment.get(USER_VARIABLE) and folder.postgres.exists():
        # Whoever made it goes on with it, also when a better account has come since.
        account = owner_of(folder.postgres) or account
    layout = PostgresLayout(
        data=folder.postgres,
        sockets=run.postgres,
        password=folder.postgres_password,
        log=folder.log("postgres"),
        binaries=reachable_binaries(folder.postgres_binaries, account),
    )
    return EmbeddedPostgres(layout, account)
