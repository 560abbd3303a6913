"""Starts the embed service: `python -m services.embed`."""

from __future__ import annotations

import os
import sys

from services.embed.app import EmbedApp
from services.embed.settings import EmbedSettings
from services.runtime.server import main_guard, run_service
from services.runtime.settings import load_settings


def main() -> int:
    """Serves until SIGTERM; returns the exit code."""
    # Requests are tokenized side by side by threads of this service; the tokenizer's own pool
    # would only fight with the model for the same cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    settings = load_settings(EmbedSettings)
    return run_service(settings, EmbedApp(settings))


if __name__ == "__main__":
    sys.exit(main_guard(main, "embed"))
