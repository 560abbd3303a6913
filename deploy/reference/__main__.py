"""Writes the pages."""

from __future__ import annotations

import sys

from deploy.reference.settings import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(f"{PAGE}\n")
