"""What libraries log, as lines of ours."""

from __future__ import annotations

import logging

from services.runtime.log import get_logger

_MOST_CHARACTERS = 200


def tell_libraries() -> None:
    """Has what libraries log and warn of in this process be events like all others."""
    logging.captureWarnings(capture=True)
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    if not any(isinstance(handler, _Handler) for handler in root.handlers):
        root.addHandler(_Handler())


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Tells a record by its place and template: what fills that may be a path or content.

        Of a message without anything to fill in nobody knows what it is made of.
        """
        place = f"{record.module}:{record.lineno}"
        template = str(record.msg)[:_MOST_CHARACTERS] if record.args else ""
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR:
            get_logger().error(
                "library_told", library=record.name, place=place, template=template, exc_info=error
            )
        else:
            get_logger().warning(
                "library_told", library=record.name, place=place, template=template, exc_info=error
            )
