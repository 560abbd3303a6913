"""Writes the pages."""

from __future__ import annotations

import sys

from deploy.reference import limits, settings

if __name__ == "__main__":
    for written in (settings, limits):
        written.PAGE.write_text(written.page(), "utf-8")
        sys.stdout.write(f"{written.PAGE}\n")
