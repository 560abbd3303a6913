"""Keeps what a start has measured, so that the next one need not."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def keep_measured(path: Path, facts: Mapping[str, object]) -> None:
    """Writes facts, whole or not at all.

    A cache that cannot be written only costs the next start time.
    """
    draft = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            draft.write_text(json.dumps(facts))
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
