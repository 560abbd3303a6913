"""What the embed service can be told: `LODESTONE_EMBED_*`."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import Annotated, Literal

from platformdirs import user_cache_path
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Listed, Names, ServiceSettings

_MOST_DIMENSIONS = 1 << 16
_NAMED = re.compile(r"[a-z0-9._-]{1,63}=.{1,4096}")
_SHARE = re.compile(r"[a-z0-9._-]{1,63}=(?:[1-9][0-9]?|100)")


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

    extra_models: Names = ()
    """More models, `id=source` separated by commas; they are loaded once the first one serves."""

    reranker: Annotated[str, Field(max_length=4096)] = ""
    """Folder of a cross-encoder as sentence-transformers saves it, for `Rerank`; empty has none. It
    is loaded once the first model serves."""

    model_shares: Names = ()
    """Weights of models while several have work, `id=weight` from 1 to 100; 1 unless named."""

    matryoshka_dimensions: Listed[int] = ()
    """Shorter vectors that the first model allows, where its own configuration names none."""

    model_admin: bool = False
    """Whether callers may load and unload models. Callers have no identity in this version, so
    that whoever can connect may, or nobody."""

    model_dirs: Listed[Path] = ()
    """Folders, separated by commas, beneath which callers may load models."""

    max_models: Annotated[int, Field(ge=1, le=32)] = 8
    """Most models at once, those that failed to load included."""

    max_memory_bytes: Annotated[int, Field(ge=0, le=1 << 50)] = 0
    """Memory of this service and its children above which no model is loaded; 0 is no limit."""

    unload_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Longest time that calls in flight hold up unloading a model."""

    backend: Literal["auto", "openvino", "torch", "hashing", "remote"] = "auto"
    """What runs the model; `auto` is torch when there is a GPU, else OpenVINO."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers to compute with; `auto` takes 16 bits where they are fast and pass a self-test."""

    torch_attention: Literal["auto", "padded"] = "auto"
    """How torch runs texts of several lengths: `auto` without padding where the model's family and
    the device allow it and a self-test passes, `padded` in rectangles."""

    cuda_graphs: Literal["auto", "off"] = "auto"
    """Whether torch replays recorded forwards on a GPU, for models that it runs without padding:
    `auto` for the sizes of batches where that measures faster when the model is loaded."""

    cache_dir: Annotated[
        Path, Field(default_factory=lambda: user_cache_path("lodestone") / "models")
    ]
    """Where converted models are kept."""

    convert_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """Longest time that the first conversion of a model may take."""

    isolation: Literal["auto", "process", "none"] = "auto"
    """Whether the model runs in a process of its own; `auto` does so for native engines, `process`
    for all but remote models."""

    hang_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 30.0
    """Time of one forward after which the engine is taken as hung, and rebuilt."""

    load_seconds: Annotated[float, Field(ge=0.1, le=86_400)] = 600.0
    """Time that the process which runs a model may take to load it, and to convert it the first
    time; then it is killed, and one that had served before is started again."""

    rebuild_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Time that an engine may be away, being rebuilt, before texts that wait for it fail."""

    engine_memory_bytes: Annotated[int, Field(ge=0, le=1 << 44)] = 0
    """Most memory (address space) of a process that runs a model; 0 is no limit. Not with a GPU,
    where CUDA reserves more than there is memory."""

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

    interactive_weight: Annotated[float, Field(ge=1, le=1000)] = 8.0
    """Tokens of queries that run for each token of bulk work while both wait."""

    lane_max_age_seconds: Annotated[float, Field(gt=0, le=600)] = 2.0
    """Time after which a batch that is ready goes next, whatever its lane."""

    tokenizer_threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads that tokenize texts of one lane: those of queries wait for none of bulk."""

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

    @field_validator("extra_models")
    @classmethod
    def _check_extra_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_NAMED.fullmatch, value)):
            raise ValueError("write id=source, with commas between; an id has [a-z0-9._-]")
        return value

    @field_validator("model_shares")
    @classmethod
    def _check_model_shares(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_SHARE.fullmatch, value)):
            raise ValueError("write id=weight, with commas between; a weight is 1 to 100")
        return value

    @field_validator("matryoshka_dimensions")
    @classmethod
    def _check_sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 < size <= _MOST_DIMENSIONS for size in value):
            raise ValueError(f"write numbers from 1 to {_MOST_DIMENSIONS}, with commas between")
        return value

    @field_validator("model_dirs")
    @classmethod
    def _check_folders(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if not all(folder.is_absolute() for folder in value):
            raise ValueError("write absolute paths, with commas between")
        return value
