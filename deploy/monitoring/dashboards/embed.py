"""The model: what waits for it, how well batches are filled, what it takes."""

from __future__ import annotations

from deploy.monitoring.dashboards.layout import INSTANCE, RATE, Board, Graph, Query, Row
from deploy.monitoring.dashboards.queries import quantile, rate

EMBED = Board(
    uid="lodestone-embed",
    title="Lodestone / Embed",
    description="The model: what waits for it, how well batches are filled, what it takes.",
    job="lodestone-embed",
    rows=(
        Row(
            "Work",
            (
                Graph(
                    "Texts by outcome",
                    "Texts that were asked for.",
                    "ops",
                    (
                        Query(
                            rate("lodestone_embed_texts_total", "lane, outcome"),
                            "{{lane}} {{outcome}}",
                        ),
                    ),
                ),
                Graph(
                    "Queue",
                    "Texts that wait for a forward, by who waits.",
                    "short",
                    (
                        Query(
                            f"sum by (lane) (lodestone_embed_queued_texts{{{INSTANCE}}})",
                            "{{lane}}",
                        ),
                    ),
                    stacked=True,
                ),
                Graph(
                    "Tokens",
                    "Tokens through the model, and those admitted that wait or run.",
                    "short",
                    (
                        Query(
                            rate("lodestone_embed_tokens_total", "instance"), "{{instance}} each s"
                        ),
                        Query(
                            f"lodestone_embed_admitted_tokens{{{INSTANCE}}}",
                            "{{instance}} admitted",
                        ),
                    ),
                ),
                Graph(
                    "Refused calls",
                    "Calls refused at once: full, or a deadline that cannot be met.",
                    "ops",
                    (Query(rate("lodestone_embed_refusals_total", "reason"), "{{reason}}"),),
                ),
            ),
        ),
        Row(
            "Batches",
            (
                Graph(
                    "Share of padding",
                    "Part of what the model computes that is no text.",
                    "percentunit",
                    (
                        Query(
                            "1 - sum by (instance) (rate(lodestone_embed_tokens_total"
                            f"{{{INSTANCE}}}{RATE})) / sum by (instance) (rate("
                            f"lodestone_embed_padded_tokens_total{{{INSTANCE}}}{RATE}))"
                        ),
                    ),
                ),
                Graph(
                    "Texts of a batch",
                    "Median and 95th percentile.",
                    "short",
                    (
                        Query(quantile(0.5, "lodestone_embed_batch_texts", ""), "median"),
                        Query(quantile(0.95, "lodestone_embed_batch_texts", ""), "95th"),
                    ),
                ),
                Graph(
                    "Time of a forward and of tokenizing",
                    "95th percentiles.",
                    "s",
                    (
                        Query(quantile(0.95, "lodestone_embed_forward_seconds", ""), "forward"),
                        Query(quantile(0.95, "lodestone_embed_tokenize_seconds", ""), "tokenize"),
                        Query(quantile(0.95, "lodestone_embed_turn_wait_seconds", ""), "turn"),
                    ),
                ),
                Graph(
                    "Batches on the device",
                    "Batches that run or are prepared: fewer than streams means an idle device.",
                    "short",
                    (Query(f"lodestone_embed_running_batches{{{INSTANCE}}}"),),
                ),
            ),
        ),
        Row(
            "Models",
            (
                Graph(
                    "Models by state",
                    "Models that load, serve, or failed.",
                    "short",
                    (Query(f"sum by (state) (lodestone_embed_models{{{INSTANCE}}})", "{{state}}"),),
                ),
                Graph(
                    "Engines",
                    "Processes of models that serve, and those that were lost each hour.",
                    "short",
                    (
                        Query(f"sum(lodestone_embed_engines_up{{{INSTANCE}}})", "up"),
                        Query(
                            "sum by (cause) (increase(lodestone_embed_engine_losses_total"
                            f"{{{INSTANCE}}}[1h]))",
                            "lost: {{cause}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
