"""The `lodestone` command: one clear line and an exit code, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import sys

import click

from services.cli.commands import cli
from services.runtime.exits import ExitCode, StartError


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    # The library's own warnings on a lost connection; the command says it in its own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _open_closed_streams()
    output = sys.stdout
    try:
        code = cli.main(args=arguments, prog_name="lodestone", standalone_mode=False)
        sys.stdout.flush()
    except StartError as error:
        return _fail(error.code, error.message)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail(ExitCode.INTERRUPTED, "Interrupted.")
    except UnicodeEncodeError as error:
        if not any("\udc80" <= sign <= "\udcff" for sign in str(error.object)):
            raise
        return _fail(ExitCode.USAGE, "An argument, or a path that it leads to, is not UTF-8.")
    except BrokenPipeError:
        return _leave_reader()
    except SystemExit:
        if sys.stdout is output:
            raise
        return _leave_reader()  # click met the broken pipe, and put something else there
    except OSError as error:
        return _fail(*_explain(error))
    return int(code or ExitCode.OK)


def _open_closed_streams() -> None:
    """Opens the standard streams that the caller closed on nothing.

    Else Python has no object for them, and the next file that is opened gets their number and what
    libraries write there.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _leave_reader() -> int:
    """Returns the code for when the reader, such as `head`, has seen enough."""
    # Nothing may be flushed to it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return int(ExitCode.OK)


def _explain(error: OSError) -> tuple[ExitCode, str]:
    where = f": {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return ExitCode.DISK_FULL, f"No space is left on the disk{where}"
    if isinstance(error, PermissionError):
        return ExitCode.DATA_FOLDER, f"Permission denied{where}"
    return ExitCode.FAILED, f"{error.strerror or error}{where}"


def _fail(code: ExitCode, message: str) -> int:
    sys.stderr.write(f"lodestone: {message}\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
