"""Files: scans, parsing, reads, watches."""

from __future__ import annotations

from deploy.monitoring.dashboards.layout import INSTANCE, Board, Graph, Query, Row
from deploy.monitoring.dashboards.queries import quantile, rate

IO = Board(
    uid="lodestone-io",
    title="Lodestone / Io",
    description="Files: scans, parsing, reads, watches.",
    job="lodestone-io",
    rows=(
        Row(
            "Files",
            (
                Graph(
                    "Scans",
                    "Scans that ended, by outcome.",
                    "ops",
                    (Query(rate("lodestone_io_scans_total", "outcome"), "{{outcome}}"),),
                ),
                Graph(
                    "Parsed files",
                    "Files of parse calls, by outcome.",
                    "ops",
                    (Query(rate("lodestone_io_parsed_files_total", "outcome"), "{{outcome}}"),),
                ),
                Graph(
                    "Reads",
                    "Texts that were asked for: one that failed mostly changed meanwhile.",
                    "ops",
                    (Query(rate("lodestone_io_read_items_total", "outcome"), "{{outcome}}"),),
                ),
                Graph(
                    "Time of calls",
                    "95th percentiles.",
                    "s",
                    (
                        Query(quantile(0.95, "lodestone_io_scan_seconds", ""), "scan"),
                        Query(quantile(0.95, "lodestone_io_parse_seconds", ""), "parse"),
                        Query(quantile(0.95, "lodestone_io_read_seconds", ""), "read"),
                    ),
                ),
                Graph(
                    "Parsers",
                    "Parser processes that live.",
                    "short",
                    (Query(f"lodestone_io_parse_workers{{{INSTANCE}}}"),),
                ),
                Graph(
                    "Left out",
                    "Files that scans found and left out, by reason.",
                    "ops",
                    (Query(rate("lodestone_io_skipped_files_total", "reason"), "{{reason}}"),),
                ),
            ),
        ),
        Row(
            "Watches",
            (
                Graph(
                    "Watched folders",
                    "Of the kernel's fs.inotify.max_user_watches.",
                    "short",
                    (Query(f"lodestone_io_watched_folders{{{INSTANCE}}}"),),
                ),
                Graph(
                    "Rescans",
                    "Times that callers were told to scan, each hour.",
                    "short",
                    (
                        Query(
                            "sum by (cause) (increase(lodestone_io_watch_rescans_total"
                            f"{{{INSTANCE}}}[1h]))",
                            "{{cause}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
)
