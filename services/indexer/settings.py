"""What the indexer can be told: `LODESTONE_INDEXER_*`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from services.indexer.search.reranking import RerankRules
from services.indexer.search.weights import Ranking, read_weights
from services.runtime.settings import Names, ServiceSettings


class IndexerSettings(ServiceSettings):
    """Settings of the indexer."""

    model_config = SettingsConfigDict(
        env_prefix="LODESTONE_INDEXER_", frozen=True, extra="ignore", populate_by_name=True
    )

    listen: str = "127.0.0.1:7303"

    database_url: Annotated[SecretStr, Field(validation_alias="LODESTONE_DATABASE_URL")]
    """PostgreSQL 16 or newer with pgvector 0.8.6 or newer (`LODESTONE_DATABASE_URL`)."""

    io_address: str = "127.0.0.1:7301"
    """Where the io service listens."""

    embed_address: str = "127.0.0.1:7302"
    """Where the embed service listens."""

    model: Annotated[str, Field(pattern=r"^$|^models/[a-z0-9._-]{1,63}$")] = ""
    """Model of workspaces that have none, or whose own is not served any more; empty takes the
    first that the embed service serves."""

    database_connections: Annotated[int, Field(ge=2, le=200)] = 8
    """Most connections to the database."""

    database_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    """Longest time of one statement; a run whose commit needs more is given back and taken up
    again, `LODESTONE_INDEXER_MAX_RUN_ATTEMPTS` times if it embeds nothing meanwhile. What writes
    all nodes of a workspace at once, as for another model, may take ten minutes."""

    max_concurrent_runs: Annotated[int, Field(ge=1, le=64)] = 2
    """Most runs that this process works on at once. Of several places one is none for runs in the
    background; where there is but one, another run may be beside one of these."""

    max_interactive_runs: Annotated[int, Field(ge=0, le=64)] = 1
    """Runs of interactive or live priority that this process works on beyond that."""

    max_run_attempts: Annotated[int, Field(ge=1, le=100)] = 10
    """Times that a run is taken up, before it ends stale."""

    lease_seconds: Annotated[float, Field(ge=1, le=600)] = 10.0
    """Time after which a run whose owner does not beat is taken over."""

    pause_grace_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Longest time that batches in flight may take when a run pauses or gives way to another."""

    parse_batch_files: Annotated[int, Field(ge=1, le=1000)] = 32
    """Files in one request to parse."""

    parse_batches_in_flight: Annotated[int, Field(ge=1, le=64)] = 2
    """Requests to parse that run at once."""

    embed_batch_nodes: Annotated[int, Field(ge=1, le=256)] = 128
    """Nodes in one claim, and so in one request to embed."""

    embed_batches_in_flight: Annotated[int, Field(ge=1, le=64)] = 4
    """Claims that are fetched, embedded or committed at once."""

    embed_bytes_in_flight: Annotated[int, Field(ge=1024, le=1 << 32)] = 32 << 20
    """Most bytes of text that are fetched, embedded or committed at once; a claim with more goes in
    parts, and a single text that is longer goes alone."""

    node_max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Times that a node is tried, before it ends failed."""

    io_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Longest time of one call to the io service, those below aside."""

    parse_budget_seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Longest time of one request to parse; a file that needs more alone ends as timed out."""

    fetch_budget_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Longest time of one request for texts; a text that needs more alone ends as timed out."""

    embed_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """Longest time of one request to embed; a text that needs more alone ends as timed out."""

    dependency_patience_seconds: Annotated[float, Field(gt=0, le=86400)] = 120.0
    """Time that a run waits for a service that does not answer, or is overloaded all the while,
    before it ends failed."""

    search_candidates: Annotated[int, Field(ge=10, le=10_000)] = 300
    """Nodes that each arm of a search hands on."""

    search_weights: Names = ()
    """Weights of ranking that differ from the defaults, `name=number` with commas between; the
    names are the fields of `services.indexer.search.weights.Ranking`."""

    rerank_top: Annotated[int, Field(ge=0, le=256)] = 0
    """First hits of a search that the embed service's reranker scores once more; 0 is off. What its
    order weighs is the weight `rerank_share`."""

    rerank_budget_ms: Annotated[int, Field(ge=1, le=60_000)] = 1000
    """Milliseconds that reranking may take; after that a search answers without it, and says so."""

    rerank_model: Annotated[str, Field(pattern=r"^$|^models/[a-z0-9._-]{1,63}$")] = ""
    """Reranker that is asked; empty is the one that the embed service's settings name."""

    live_debounce_seconds: Annotated[float, Field(ge=0, le=60)] = 0.05
    """Quiet time after a change in a live workspace, before a run over it is queued."""

    live_max_wait_seconds: Annotated[float, Field(gt=0, le=600)] = 1.0
    """Longest time that a change waits for quiet, as of a file that is written all the time."""

    live_max_paths: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Changed paths of one run; more of them are a run over the whole tree."""

    live_reconcile_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    """Time between two looks through the whole tree of a live workspace."""

    live_lease_seconds: Annotated[float, Field(ge=1, le=600)] = 5.0
    """Time after which a live workspace whose watcher does not beat is watched by another."""

    live_max_workspaces: Annotated[int, Field(ge=0, le=1024)] = 16
    """Most live workspaces that this process watches; 0 for one that watches none."""

    vector_index_nodes: Annotated[int, Field(ge=0, le=1_000_000_000)] = 30_000
    """Nodes of a workspace from which on an index over its vectors is built; 0 builds none."""

    vector_index_recall: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Share of the hundred nearest nodes that the index must find to be used."""

    vector_index_interval_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Time between two looks for vectors that want an index."""

    term_index_nodes: Annotated[int, Field(ge=0, le=1_000_000_000)] = 5_000
    """Nodes of a workspace from which on it has postings of terms in blocks; 0 makes none."""

    term_index_interval_seconds: Annotated[float, Field(gt=0, le=86_400)] = 10.0
    """Time between two looks for terms that want blocks, or newer ones."""

    retention_days: Annotated[int, Field(ge=1, le=36_500)] = 30
    """Days that finished runs and their outcomes are kept at least; and what is cached of a model,
    since no workspace has it."""

    retention_runs: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Newest runs of each workspace that are kept however old they are."""

    retention_interval_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """Time between two looks for runs that need not be kept."""

    cache_days: Annotated[float, Field(ge=0, le=36_500)] = 30.0
    """Days that the vector and terms of a text are kept that no node has any more, so that an older
    branch costs no forward; 0 keeps them for good."""

    cache_sweep_seconds: Annotated[float, Field(gt=0, le=31_536_000)] = 86_400.0
    """Time between two looks for such texts, over all replicas: one reads all nodes."""

    queue_look_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    """Time between two looks at the queue for metrics: its depth and age, runs and holds."""

    @model_validator(mode="after")
    def _check_waits(self) -> IndexerSettings:
        if self.live_max_wait_seconds < self.live_debounce_seconds:
            raise ValueError(
                "LODESTONE_INDEXER_LIVE_MAX_WAIT_SECONDS must not be less than "
                "LODESTONE_INDEXER_LIVE_DEBOUNCE_SECONDS"
            )
        return self

    @property
    def ranking(self) -> Ranking:
        """The weights of ranking."""
        return read_weights(self.search_weights)

    @property
    def rerank_rules(self) -> RerankRules:
        """How much of a search is reranked, and how."""
        return RerankRules(
            top=self.rerank_top,
            share=self.ranking.rerank_share,
            smoothing=self.ranking.rerank_smoothing,
            budget_seconds=self.rerank_budget_ms / 1000,
            model=self.rerank_model,
        )

    @field_validator("search_weights", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("search_weights")
    @classmethod
    def _check_weights(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        read_weights(value)
        return value
