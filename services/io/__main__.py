"""Runs the io service."""

from __future__ import annotations

import sys

from services.io.app import IoApp
from services.io.settings import IoSettings
from services.runtime.server import main_guard, run_service
from services.runtime.settings import load_settings


def main() -> int:
    """Serves until told to stop; returns the exit code."""
    settings = load_settings(IoSettings)
    return run_service(settings, IoApp(settings))


if __name__ == "__main__":
    sys.exit(main_guard(main, "io"))
