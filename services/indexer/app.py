"""Builds the indexer: the only place that does."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from lodestone.indexer.v1 import (
    index_run_service_pb2_grpc,
    maintenance_service_pb2_grpc,
    queue_service_pb2_grpc,
    search_service_pb2_grpc,
    workspace_service_pb2_grpc,
)
from services.indexer.checker import Checker
from services.indexer.dispatcher import Dispatcher
from services.indexer.embed_client import EmbedClient
from services.indexer.execution import RunContext
from services.indexer.forwards import ForwardGate
from services.indexer.io_client import IoClient
from services.indexer.ledger import RunLedger
from services.indexer.maintenance_servicer import MaintenanceServicer
from services.indexer.queue_servicer import QueueServicer
from services.indexer.search.engine import SearchEngine
from services.indexer.servicers import IndexRunServicer, SearchServicer, WorkspaceServicer
from services.indexer.signals import RunSignals
from services.indexer.storage.database import Database
from services.indexer.storage.files import FileStore
from services.indexer.storage.marks import MarkStore
from services.indexer.storage.migrate import migrate
from services.indexer.storage.nodes import NodeQueue
from services.indexer.storage.queue_admin import QueueAdmin
from services.indexer.storage.run_retention import RetentionRules
from services.indexer.storage.search import SearchStore
from services.indexer.storage.workspaces import WorkspaceStore
from services.indexer.turns import ClaimTurns
from services.indexer.upkeep import Upkeep
from services.runtime.channel import connect
from services.runtime.errors import DependencyUnavailableError
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    import grpc

    from services.indexer.settings import IndexerSettings

_LEAST_IDLE_SECONDS = 5.0
"""A transaction may stand still for so long even where leases are shorter: a loop that is late is
no process that is frozen."""


class IndexerApp:
    """The indexer as `runtime.server.run_service` runs it."""

    name = "indexer"
    service_names = (
        "lodestone.indexer.v1.WorkspaceService",
        "lodestone.indexer.v1.IndexRunService",
        "lodestone.indexer.v1.SearchService",
        "lodestone.indexer.v1.QueueService",
        "lodestone.indexer.v1.MaintenanceService",
    )

    def __init__(self, settings: IndexerSettings) -> None:
        self._settings = settings
        self._database = Database(
            settings.database_url.get_secret_value(),
            connections=settings.database_connections,
            timeout_seconds=settings.database_timeout_seconds,
            idle_seconds=max(settings.lease_seconds, _LEAST_IDLE_SECONDS),
        )
        self._signals = RunSignals()
        self._channels: list[grpc.aio.Channel] = []
        self._dispatcher: Dispatcher | None = None
        self._upkeep: Upkeep | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """Wires everything; nothing connects before it is used."""
        settings = self._settings
        io = IoClient(
            self._connect(settings.io_address),
            settings.io_timeout_seconds,
            parse_seconds=settings.parse_budget_seconds,
            fetch_seconds=settings.fetch_budget_seconds,
        )
        embed = EmbedClient(self._connect(settings.embed_address), settings.embed_timeout_seconds)
        owner = uuid.uuid4()
        workspaces = WorkspaceStore(self._database)
        ledger = RunLedger(self._database, owner, settings.lease_seconds)
        context = RunContext(
            settings=settings,
            workspaces=workspaces,
            files=FileStore(self._database, ledger),
            nodes=NodeQueue(self._database, ledger, owner, settings.lease_seconds),
            ledger=ledger,
            marks=MarkStore(self._database),
            signals=self._signals,
            io=io,
            embed=embed,
            gate=ForwardGate(),
            turns=ClaimTurns(settings.embed_batches_in_flight),
        )
        rules = RetentionRules(settings.retention_days, settings.retention_runs)
        self._upkeep = Upkeep(lambda: ledger.forget_old(rules), settings.retention_interval_seconds)
        self._dispatcher = Dispatcher(context)
        engine = SearchEngine(
            SearchStore(self._database), workspaces, embed, io, settings.search_candidates
        )
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(
            WorkspaceServicer(workspaces), server
        )
        index_run_service_pb2_grpc.add_IndexRunServiceServicer_to_server(
            IndexRunServicer(workspaces, ledger, self._signals, self._dispatcher), server
        )
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(
            SearchServicer(workspaces, engine), server
        )
        queue_service_pb2_grpc.add_QueueServiceServicer_to_server(
            QueueServicer(QueueAdmin(self._database), workspaces, ledger, self._signals), server
        )
        maintenance_service_pb2_grpc.add_MaintenanceServiceServicer_to_server(
            MaintenanceServicer(
                Checker(workspaces, context.files, context.marks, io, embed),
                workspaces,
                self._signals,
            ),
            server,
        )

    async def start(self) -> None:
        """Connects to the database, migrates it, and begins to take runs."""
        await self._database.open()
        try:
            await migrate(self._database, self._settings.database_url.get_secret_value())
        except DependencyUnavailableError as error:
            raise StartError(ExitCode.UNAVAILABLE, error.message) from None
        assert self._dispatcher is not None
        assert self._upkeep is not None
        self._dispatcher.start()
        self._upkeep.start()

    async def drain(self) -> None:
        """Gives unfinished runs back and ends watches."""
        if self._dispatcher is not None:
            await self._dispatcher.stop()
        if self._upkeep is not None:
            await self._upkeep.stop()
        self._signals.drain()

    async def close(self) -> None:
        """Closes channels and the database."""
        for channel in self._channels:
            await channel.close()
        await self._database.close()

    def _connect(self, address: str) -> grpc.aio.Channel:
        channel = connect(address, max_message_bytes=self._settings.max_message_bytes)
        self._channels.append(channel)
        return channel
