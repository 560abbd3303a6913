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
from services.indexer.background import Background
from services.indexer.checker import Checker
from services.indexer.comparer import Comparer
from services.indexer.dispatcher import Dispatcher
from services.indexer.embed_client import EmbedClient
from services.indexer.execution import RunContext
from services.indexer.forwards import ForwardGate
from services.indexer.graph.engine import GraphEngine
from services.indexer.io_client import IoClient
from services.indexer.ledger import RunLedger
from services.indexer.live.gather import GatherRules
from services.indexer.live.watcher import WatchContext
from services.indexer.live.watches import LiveWatches
from services.indexer.live_files import LiveFiles
from services.indexer.maintenance_servicer import MaintenanceServicer
from services.indexer.model_admin import ModelAdmin
from services.indexer.model_choice import ModelChoice
from services.indexer.queue_servicer import QueueServicer
from services.indexer.search.engine import SearchEngine
from services.indexer.search.explain import Explainer
from services.indexer.search.reranking import Reranker
from services.indexer.search.truth import Truth
from services.indexer.search_requests import SearchRequests
from services.indexer.search_servicer import SearchServicer
from services.indexer.servicers import IndexRunServicer, WorkspaceServicer
from services.indexer.signals import RunSignals
from services.indexer.storage import tenancy
from services.indexer.storage.database import Database
from services.indexer.storage.file_truth import FileTruth
from services.indexer.storage.files import FileStore
from services.indexer.storage.frozen_sessions import FrozenSessions
from services.indexer.storage.graph import GraphStore
from services.indexer.storage.indexed_files import IndexedFiles
from services.indexer.storage.marks import MarkStore
from services.indexer.storage.migrate import migrate
from services.indexer.storage.model_queue import ModelQueue
from services.indexer.storage.nodes import NodeQueue
from services.indexer.storage.postings_truth import PostingsTruth
from services.indexer.storage.queue_admin import QueueAdmin
from services.indexer.storage.queue_depth import QueueDepth
from services.indexer.storage.run_retention import RetentionRules
from services.indexer.storage.search import SearchStore
from services.indexer.storage.term_blocks import TermBlocks
from services.indexer.storage.term_index import TermIndex
from services.indexer.storage.truth import TruthStore
from services.indexer.storage.unused_texts import UnusedTexts
from services.indexer.storage.vector_index import VectorIndexes
from services.indexer.storage.watches import WatchStore
from services.indexer.storage.workspace_models import WorkspaceModels
from services.indexer.storage.workspaces import WorkspaceStore
from services.indexer.text_bytes import TextBudget
from services.indexer.turns import ClaimTurns
from services.indexer.upkeep import Upkeep
from services.indexer.vector_checker import VectorChecker
from services.indexer.watch_client import WatchClient
from services.runtime.channel import connect
from services.runtime.errors import DependencyUnavailableError
from services.runtime.exits import ExitCode, StartError
from services.runtime.garbage import collect_less

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
        self._idle_seconds = max(settings.lease_seconds, _LEAST_IDLE_SECONDS)
        self._database = Database(
            settings.database_url.get_secret_value(),
            connections=settings.database_connections,
            timeout_seconds=settings.database_timeout_seconds,
            idle_seconds=self._idle_seconds,
        )
        self._signals = RunSignals()
        self._channels: list[grpc.aio.Channel] = []
        self._background: Background | None = None

    def register(self, server: grpc.aio.Server) -> None:
        """Wires everything; nothing connects before it is used."""
        settings, database = self._settings, self._database
        io_channel = self._connect(settings.io_address)
        owner = uuid.uuid4()
        context = self._run_context(io_channel, owner)
        indexes = VectorIndexes(
            database,
            least_nodes=settings.vector_index_nodes,
            least_recall=settings.vector_index_recall,
        )
        dispatcher = Dispatcher(context)
        client = WatchClient(io_channel, settings.io_timeout_seconds)
        self._background = Background(
            dispatcher,
            self._live_watches(context, dispatcher, client, owner),
            self._upkeep(context.ledger, indexes),
        )
        search = SearchStore(database, indexes, TermBlocks(database), settings.ranking)
        models = WorkspaceModels(database, context.ledger)
        _serve_runs(server, context, self._background)
        self._serve_search(server, context, search, io_channel)
        self._serve_administration(server, context, search, models, indexes)

    async def start(self) -> None:
        """Connects to the database, migrates it, and begins to take runs."""
        await self._database.open()
        try:
            await migrate(self._database, self._settings.database_url.get_secret_value())
        except DependencyUnavailableError as error:
            raise StartError(ExitCode.UNAVAILABLE, error.message) from None
        if self._settings.accepted_tokens_file is not None:
            await tenancy.install(self._database)
        assert self._background is not None
        self._background.start()
        collect_less()

    async def drain(self) -> None:
        """Gives unfinished runs and live workspaces back, and ends watches of runs."""
        if self._background is not None:
            await self._background.stop()
        self._signals.drain()

    async def close(self) -> None:
        """Closes channels and the database."""
        for channel in self._channels:
            await channel.close()
        await self._database.close()

    def _run_context(self, io_channel: grpc.aio.Channel, owner: uuid.UUID) -> RunContext:
        """Returns what runs are made with."""
        settings, database = self._settings, self._database
        io = IoClient(
            io_channel,
            settings.io_timeout_seconds,
            parse_seconds=settings.parse_budget_seconds,
            fetch_seconds=settings.fetch_budget_seconds,
        )
        embed = EmbedClient(self._connect(settings.embed_address), settings.embed_timeout_seconds)
        workspaces = WorkspaceStore(database)
        ledger = RunLedger(database, owner, settings.lease_seconds)
        return RunContext(
            settings=settings,
            workspaces=workspaces,
            choice=ModelChoice(workspaces, ledger, embed, settings),
            files=FileStore(database, ledger),
            nodes=NodeQueue(database, ledger, owner, settings.lease_seconds),
            model_nodes=ModelQueue(database, ledger, owner, settings.lease_seconds),
            ledger=ledger,
            marks=MarkStore(database),
            signals=self._signals,
            io=io,
            embed=embed,
            gate=ForwardGate(),
            turns=ClaimTurns(settings.embed_batches_in_flight),
            texts=TextBudget(settings.embed_bytes_in_flight),
        )

    def _upkeep(self, ledger: RunLedger, indexes: VectorIndexes) -> tuple[Upkeep, ...]:
        """Returns the tasks that keep the database in order."""
        settings, database = self._settings, self._database
        rules = RetentionRules(settings.retention_days, settings.retention_runs)
        frozen = FrozenSessions(database, self._idle_seconds, settings.database_timeout_seconds)
        term_index = TermIndex(database, least_nodes=settings.term_index_nodes)
        unused = UnusedTexts(
            database, keep_days=settings.cache_days, sweep_seconds=settings.cache_sweep_seconds
        )
        return (
            Upkeep("frozen_sessions", frozen.end, self._idle_seconds / 4),
            Upkeep(
                "retention", lambda: ledger.forget_old(rules), settings.retention_interval_seconds
            ),
            Upkeep(
                "unused_texts",
                unused.step,
                min(settings.retention_interval_seconds, settings.cache_sweep_seconds),
            ),
            Upkeep("vector_index", indexes.step, settings.vector_index_interval_seconds),
            Upkeep("term_index", term_index.step, settings.term_index_interval_seconds),
            Upkeep("queue_look", QueueDepth(database).look, settings.queue_look_seconds),
        )

    def _live_watches(
        self, context: RunContext, dispatcher: Dispatcher, client: WatchClient, owner: uuid.UUID
    ) -> LiveWatches:
        settings = self._settings

        def wake() -> None:
            context.signals.notify_queued()
            dispatcher.look_again()

        return LiveWatches(
            WatchContext(
                rules=GatherRules(
                    debounce_seconds=settings.live_debounce_seconds,
                    max_wait_seconds=settings.live_max_wait_seconds,
                    max_paths=settings.live_max_paths,
                    reconcile_seconds=settings.live_reconcile_seconds,
                ),
                watches=WatchStore(self._database, owner, settings.live_lease_seconds),
                ledger=context.ledger,
                client=client,
                signals=context.signals,
                wake=wake,
            ),
            settings.live_lease_seconds,
            settings.live_max_workspaces,
        )

    def _serve_search(
        self,
        server: grpc.aio.Server,
        context: RunContext,
        search: SearchStore,
        io_channel: grpc.aio.Channel,
    ) -> None:
        settings, database = self._settings, self._database
        truth = TruthStore(database)
        engine = SearchEngine(
            search,
            context.workspaces,
            context.embed,
            context.io,
            candidates=settings.search_candidates,
            ranking=settings.ranking,
            reranker=Reranker(context.embed, context.io, settings.rerank_rules),
        )
        search_service_pb2_grpc.add_SearchServiceServicer_to_server(
            SearchServicer(
                SearchRequests(context.workspaces, context.ledger),
                engine,
                files=IndexedFiles(database),
                live=LiveFiles(io_channel, settings.io_timeout_seconds),
                graph=GraphEngine(GraphStore(database)),
                truth=Truth(truth, context.workspaces, context.io),
                explainer=Explainer(engine, truth, context.workspaces),
            ),
            server,
        )

    def _serve_administration(
        self,
        server: grpc.aio.Server,
        context: RunContext,
        search: SearchStore,
        models: WorkspaceModels,
        indexes: VectorIndexes,
    ) -> None:
        workspaces, io, embed = context.workspaces, context.io, context.embed
        queue = QueueAdmin(self._database)
        queue_service_pb2_grpc.add_QueueServiceServicer_to_server(
            QueueServicer(queue, workspaces, context.ledger, self._signals), server
        )
        maintenance_service_pb2_grpc.add_MaintenanceServiceServicer_to_server(
            MaintenanceServicer(
                Checker(
                    workspaces,
                    context.files,
                    context.marks,
                    rows=FileTruth(self._database),
                    postings=PostingsTruth(self._database),
                    lists=indexes,
                    indexed=IndexedFiles(self._database),
                    models=models,
                    vectors=VectorChecker(context.marks, io, embed),
                    io=io,
                ),
                ModelAdmin(workspaces, models, embed),
                Comparer(models, context.marks, search, io, embed),
                workspaces,
                self._signals,
            ),
            server,
        )

    def _connect(self, address: str) -> grpc.aio.Channel:
        settings = self._settings
        channel = connect(
            address,
            service=self.name,
            max_message_bytes=settings.max_message_bytes,
            tls=settings.tls,
            token_file=settings.token_file,
        )
        self._channels.append(channel)
        return channel


def _serve_runs(server: grpc.aio.Server, context: RunContext, background: Background) -> None:
    workspaces, ledger, signals = context.workspaces, context.ledger, context.signals
    workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(
        WorkspaceServicer(workspaces, background.watches.look_again), server
    )
    index_run_service_pb2_grpc.add_IndexRunServiceServicer_to_server(
        IndexRunServicer(workspaces, ledger, signals, background.dispatcher), server
    )
