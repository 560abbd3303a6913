"""What the embed service can be told: `LODESTONE_EMBED_*`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import Annotated, Literal

from platformdirs import user_cache_path
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import ServiceSettings


class EmbedSettings(ServiceSettings):
    """Settings of the embed service."""

    model_config = SettingsConfigDict(
        env_prefix="LODESTONE_EMBED_", frozen=True, extra="ignore", protected_namespaces=()
    )

    listen: Annotated[str, Field(max_length=200)] = "127.0.0.1:7302"
    """Address of the gRPC server: `unix:/path` or `127.0.0.1:port`."""

    model: Annotated[str, Field(min_length=1, max_length=4096)] = "minilm"
    """`minilm` (bundled), `hashing`, `hashing:DIMENSIONS`, a sentence-transformers folder, or
    `openai:MODEL` behind an embeddings API of OpenAI's form."""

    model_id: Annotated[str, Field(pattern=r"^$|^[a-z0-9._-]{1,63}$")] = ""
    """Last part of the model's resource name; empty derives it from `model`."""

    backend: Literal["auto", "openvino", "torch", "hashing", "remote"] = "auto"
    """What runs the model; `auto` is torch when there is a GPU, else OpenVINO."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers to compute with; `auto` takes 16 bits where they are fast and pass a self-test."""

    torch_attention: Literal["auto", "padded"] = "auto"
    """How torch runs texts of several lengths: `auto` without padding where the model's family and
    the device allow it and a self-test passes, `padded` in rectangles."""

    cache_dir: Annotated[
        Path, Field(default_factory=lambda: user_cache_path("lodestone") / "models")
    ]
    """Where converted models are kept."""

    convert_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """Longest time that the first conversion of a model may take."""

    streams: Annotated[int, Field(ge=0, le=256)] = 0
    """Forwards at once on OpenVINO; 0 measures it at the first start."""

    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads of all forwards together on OpenVINO; 0 is one a core."""

    token_budget: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Most tokens of a batch with padding; 0 lets the backend choose. A longer text goes alone."""

    batch_max_texts: Annotated[int, Field(ge=1, le=4096)] = 256
    """Most texts of one forward."""

    max_batch_texts: Annotated[int, Field(ge=1, le=256)] = 256
    """Most texts of one request."""

    max_text_chars: Annotated[int, Field(ge=1024, le=1 << 26)] = 1 << 20
    """Characters of a text that are looked at; what is beyond counts as cut off."""

    queue_tokens: Annotated[int, Field(ge=1024, le=1 << 30)] = 1 << 18
    """Most tokens that wait or run at once; more are refused with RESOURCE_EXHAUSTED."""

    queue_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 32)] = 64 << 20
    """Most bytes of text that wait or run at once."""

    interactive_burst: Annotated[int, Field(ge=1, le=1000)] = 4
    """Interactive batches in a row after which a waiting bulk batch has its turn."""

    tokenizer_threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads that tokenize."""

    stream_groups: Annotated[int, Field(ge=1, le=64)] = 4
    """Groups of texts in flight of one EmbedStream call; further texts are not read meanwhile."""

    remote_url: Annotated[str, Field(max_length=2048)] = ""
    """Root of the API of an `openai:` model, e.g. `https://api.openai.com/v1`; `http://` is taken
    for this machine alone."""

    remote_key_file: Annotated[Path | None, Field()] = None
    """File with the provider's key; read again when it changes, refused when others may read it."""

    remote_dimensions: Annotated[int, Field(ge=0, le=16_000)] = 0
    """Length of vectors that is asked of the provider; 0 takes what a first call at start gives."""

    remote_max_tokens: Annotated[int, Field(ge=16, le=1 << 17)] = 8191
    """Most tokens that are sent of one text, where three bytes count as one."""

    remote_document_prompt: Annotated[str, Field(max_length=4096)] = ""
    """What a remote model wants before each document."""

    remote_query_prompt: Annotated[str, Field(max_length=4096)] = ""
    """What a remote model wants before each query."""

    remote_requests_per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """The provider's limit of requests; 0 knows none."""

    remote_tokens_per_minute: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    """The provider's limit of tokens; 0 knows none."""

    remote_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0
    """Longest time of one request to the provider."""

    remote_deadline_seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    """Longest time of one batch, with waits for the provider's limits and with retries."""

    remote_concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests to the provider at once."""

    remote_max_batch_texts: Annotated[int, Field(ge=1, le=2048)] = 128
    """Most texts of one request to the provider."""

    remote_proxy: Annotated[str, Field(max_length=2048)] = ""
    """URL of a proxy on the way to the provider; those of the environment are not used."""
