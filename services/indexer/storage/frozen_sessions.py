"""Ends sessions whose process is frozen in the middle of a message to the database.

`idle_in_transaction_session_timeout` ends one that is frozen between two statements. A client that
has sent a statement to be parsed and not yet its end, feeds a COPY, or takes no results counts as
active, to `statement_timeout` as well, and keeps its locks for as long as it sleeps. Its kernel
goes on answering for it, so that no timeout of the network finds it either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.indexer import metrics
from services.runtime.log import get_logger

if TYPE_CHECKING:
    from services.indexer.storage.database import Database

_END = """
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE application_name = current_setting('application_name') AND datname = current_database()
  AND usename = session_user AND pid <> pg_backend_pid()
  AND state = 'active' AND wait_event IN ('ClientRead', 'ClientWrite')
  AND state_change < clock_timestamp() - make_interval(
    secs => CASE WHEN query LIKE 'COPY %' THEN $2::float8 ELSE $1::float8 END)
"""
"""`state_change` is the time of the last message that was begun; a COPY is one for all its rows."""


class FrozenSessions:
    """Ends frozen sessions of this service, whichever replica they are of.

    Args:
        database: where they are.
        idle_seconds: how long a session may wait for its client in the middle of a statement.
        copy_seconds: the same for a COPY, which may take that long in any case.
    """

    def __init__(self, database: Database, idle_seconds: float, copy_seconds: float) -> None:
        self._database = database
        self._limits = idle_seconds, max(idle_seconds, copy_seconds)

    async def end(self) -> int:
        """Ends those that there are; returns 0, as there is never more to do at once.

        Raises:
            DependencyUnavailableError: the database does not answer.
        """
        async with self._database.connection() as connection:
            ended = await connection.fetchval(_END, *self._limits)
        if ended:
            metrics.FROZEN_SESSIONS.inc(ended)
            get_logger().warning("frozen_sessions_ended", sessions=ended)
        return 0
