"""Writes the dashboards' JSON, and the alerts as a rule of the Prometheus operator."""

from __future__ import annotations

import sys

from deploy.monitoring.dashboards.files import generated


def main() -> int:
    """Writes each file whose content changed; returns 0."""
    for path, text in generated().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
