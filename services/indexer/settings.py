"""What the indexer can be told: `LODESTONE_INDEXER_*`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import ServiceSettings


class IndexerSettings(ServiceSettings):
    """Settings of the indexer."""

    model_config = SettingsConfigDict(
        env_prefix="LODESTONE_INDEXER_", frozen=True, extra="ignore", populate_by_name=True
    )

    listen: str = "127.0.0.1:7303"

    database_url: Annotated[SecretStr, Field(validation_alias="LODESTONE_DATABASE_URL")]
    """PostgreSQL 16 or newer with pgvector 0.8 or newer (`LODESTONE_DATABASE_URL`)."""

    io_address: str = "127.0.0.1:7301"
    """Where the io service listens."""

    embed_address: str = "127.0.0.1:7302"
    """Where the embed service listens."""

    model: Annotated[str, Field(pattern=r"^$|^models/[a-z0-9._-]{1,63}$")] = ""
    """Model that new runs embed with; empty takes the first that the embed service serves."""

    database_connections: Annotated[int, Field(ge=2, le=200)] = 8
    """Most connections to the database."""

    database_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    """Longest time of one statement; a run whose commit needs more is given back and goes on."""

    max_concurrent_runs: Annotated[int, Field(ge=1, le=64)] = 2
    """Most runs that this process works on at once."""

    max_interactive_runs: Annotated[int, Field(ge=0, le=64)] = 1
    """Runs of interactive priority that this process works on beyond that."""

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
    """Time that a run waits for a service that does not answer, before it ends failed."""

    search_candidates: Annotated[int, Field(ge=10, le=10_000)] = 200
    """Nodes that each arm of a search hands on."""

    retention_days: Annotated[int, Field(ge=1, le=36_500)] = 30
    """Days that finished runs and their outcomes are kept at least."""

    retention_runs: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Newest runs of each workspace that are kept however old they are."""

    retention_interval_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """Time between two looks for runs that need not be kept."""
