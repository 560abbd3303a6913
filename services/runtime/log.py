"""Structured logs: one line of JSON an event, or colours on a terminal."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import structlog
from opentelemetry import trace

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

_MAX_FRAMES = 12
_MAX_CAUSES = 4


def configure(service: str, level: str, log_format: str) -> None:
    """Sends this process's logs to standard error, each with the service's name and trace id.

    What libraries log is among them.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )

    def add_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_service,
            _add_trace_ids,
            _tell_errors_without_their_text,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_make_logger,
        cache_logger_on_first_use=False,
    )
    from services.runtime.library_logs import tell_libraries  # noqa: PLC0415 - it logs by this

    tell_libraries()


def get_logger() -> structlog.stdlib.BoundLogger:
    """Returns the logger; event names are constant, data goes in keywords."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger())


class _Logger(structlog.PrintLogger):
    """Prints lines; one that cannot be written is lost, and nobody fails by it.

    A disk that is full, or a pipe that nobody reads any more, must not end what had something to
    tell: often the thread that mends what it tells of.
    """

    def msg(self, message: str) -> None:
        """Prints a line, if that can be."""
        with suppress(OSError, ValueError):  # the latter of a file that is closed
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _make_logger(*_: Any) -> structlog.PrintLogger:
    return _Logger(sys.stderr)  # the one of now: it may have been redirected


def _add_trace_ids(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    context: Any = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
        event["span_id"] = format(context.span_id, "016x")
    return event


def _tell_errors_without_their_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replaces an exception by the types of it and its causes, and where they were raised.

    Texts of exceptions and local variables hold paths and pieces of files; a log must not.
    """
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["error"] = _chain(error)
    return event


def _chain(error: BaseException) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    current: BaseException | None = error
    while current is not None and len(told) < _MAX_CAUSES:
        kind = type(current)
        frames = traceback.extract_tb(current.__traceback__)[-_MAX_FRAMES:]
        told.append(
            {
                "type": f"{kind.__module__}.{kind.__qualname__}",
                "frames": [
                    f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames
                ],
            }
        )
        current = current.__cause__ or current.__context__
    return told


def _short(filename: str) -> str:
    """Returns the last parts of a source file's path: they tell the module, not the machine."""
    return "/".join(filename.replace("\\", "/").split("/")[-3:])
