"""Counters of the embed service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from services.runtime.process_metrics import told_from_zero

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)

TEXTS = Counter(
    "lodestone_embed_texts_total",
    "Texts by lane and by how they ended: ok, invalid, bad_vector, overloaded, unavailable, "
    "cancelled.",
    ("lane", "outcome"),
)
RERANKED_TEXTS = Counter(
    "lodestone_embed_reranked_texts_total",
    "Texts to score against a query by how they ended: ok, invalid, bad_score, overloaded, "
    "unavailable, cancelled.",
    ("outcome",),
)
SHARED_TEXTS = Counter(
    "lodestone_embed_shared_texts_total",
    "Texts that took the vector of an identical text in flight.",
)
DROPPED_TEXTS = Counter(
    "lodestone_embed_dropped_texts_total",
    "Texts that were dropped before their forward, because nobody waited any more.",
)
TOKENS = Counter("lodestone_embed_tokens_total", "Tokens that went through the model.")
PADDED_TOKENS = Counter(
    "lodestone_embed_padded_tokens_total", "Tokens and padding that went through the model."
)
BATCH_TEXTS = Histogram(
    "lodestone_embed_batch_texts", "Texts of one forward.", buckets=_BATCH_BUCKETS
)
FORWARD_SECONDS = Histogram(
    "lodestone_embed_forward_seconds", "Time of one batch on its stream.", buckets=_SECONDS_BUCKETS
)
TOKENIZE_SECONDS = Histogram(
    "lodestone_embed_tokenize_seconds",
    "Time to tokenize the texts of one request.",
    buckets=_SECONDS_BUCKETS,
)
QUEUED_TEXTS = Gauge("lodestone_embed_queued_texts", "Texts that wait for a forward.", ("lane",))
ADMITTED_TOKENS = Gauge("lodestone_embed_admitted_tokens", "Tokens of all texts that wait or run.")
RUNNING_BATCHES = Gauge(
    "lodestone_embed_running_batches", "Batches that run or are prepared to run next."
)
OUT_OF_MEMORY = Counter(
    "lodestone_embed_out_of_memory_total", "Forwards that found no memory, and were halved."
)
REFUSALS = Counter(
    "lodestone_embed_refusals_total",
    "Requests that were refused at once, by reason: full, deadline.",
    ("reason",),
)
ENGINES_UP = Gauge("lodestone_embed_engines_up", "Engine processes that serve.")
ENGINE_LOSSES = Counter(
    "lodestone_embed_engine_losses_total",
    "Engines that were lost, by cause: died, hung, out_of_memory, raised, wrong_vectors.",
    ("cause",),
)
MODELS = Gauge("lodestone_embed_models", "Models by state: loading, ready, failed.", ("state",))
CUDA_GRAPHS = Gauge(
    "lodestone_embed_cuda_graphs", "Sizes of batches that are replayed from a CUDA graph."
)
MODEL_LOADS = Counter(
    "lodestone_embed_model_loads_total",
    "Loads of models beside the one of the start, by how they ended: ok, failed, refused.",
    ("outcome",),
)
TURN_WAIT_SECONDS = Histogram(
    "lodestone_embed_turn_wait_seconds",
    "Time that a forward waited because another model had its turn.",
    buckets=_SECONDS_BUCKETS,
)
REMOTE_REQUESTS = Counter(
    "lodestone_embed_remote_requests_total",
    "Requests to the provider of a remote model by how they ended: ok, not_sent (for a limit, or "
    "because the provider is dead), or the kind of failure.",
    ("outcome",),
)
REMOTE_SECONDS = Histogram(
    "lodestone_embed_remote_seconds",
    "Time of one request to the provider of a remote model.",
    buckets=_SECONDS_BUCKETS,
)
REMOTE_WAIT_SECONDS = Counter(
    "lodestone_embed_remote_wait_seconds_total",
    "Time that requests to a remote model waited for its provider's limits.",
)
REMOTE_CIRCUIT_OPEN = Gauge(
    "lodestone_embed_remote_circuit_open",
    "Providers that failed so often that they are not asked for a while.",
)

told_from_zero(
    RERANKED_TEXTS, "ok", "invalid", "bad_score", "overloaded", "unavailable", "cancelled"
)
told_from_zero(REFUSALS, "full", "deadline")
told_from_zero(ENGINE_LOSSES, "died", "hung", "out_of_memory", "raised", "wrong_vectors")
told_from_zero(MODELS, "loading", "ready", "failed")
told_from_zero(MODEL_LOADS, "ok", "failed", "refused")


class Part:
    """One model's part of a gauge that counts over all models; set by one thread at a time."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._value = 0.0

    def set(self, value: float) -> None:
        """Replaces what this part adds to the gauge."""
        self._gauge.inc(value - self._value)
        self._value = value


def note_forward(lengths: Sequence[int], tokens: int) -> None:
    """Counts one forward of texts of these lengths, and its tokens with padding."""
    TOKENS.inc(sum(lengths))
    PADDED_TOKENS.inc(tokens)
    BATCH_TEXTS.observe(len(lengths))
