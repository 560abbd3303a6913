"""Starts the indexer: `python -m services.indexer`."""

from __future__ import annotations

import sys

from services.runtime.server import main_guard


def main() -> int:
    """Serves until it is stopped; returns the exit code."""
    from services.indexer.app import IndexerApp  # noqa: PLC0415 - settings are checked first
    from services.indexer.settings import IndexerSettings  # noqa: PLC0415
    from services.runtime.server import run_service  # noqa: PLC0415
    from services.runtime.settings import load_settings  # noqa: PLC0415

    settings = load_settings(IndexerSettings)
    return run_service(settings, IndexerApp(settings))


if __name__ == "__main__":
    sys.exit(main_guard(main, "indexer"))
