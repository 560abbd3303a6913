"""What the system allows this user: open files, and folders that the kernel watches."""

from __future__ import annotations

import resource
from pathlib import Path

from services.runtime.exits import ExitCode, StartError

LEAST_FILES = 1024
LEAST_WATCHES = 65_536
_WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")


def check_limits() -> str:
    """Returns the limits. Raises StartError with what to raise when one is low."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        raise StartError(
            ExitCode.USAGE,
            f"{soft} open files: reads wait for each other; run `ulimit -n {LEAST_FILES}`.",
        )
    try:
        watches = int(_WATCHES.read_text("ascii"))
    except (OSError, ValueError):
        return f"{_count(soft)} open files"
    if watches < LEAST_WATCHES:
        raise StartError(
            ExitCode.USAGE,
            f"{watches} watched folders: large trees are scanned instead of watched; run "
            f"`sysctl fs.inotify.max_user_watches={LEAST_WATCHES}`.",
        )
    return f"{_count(soft)} open files, {watches:,} watched folders"


def _count(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else f"{number:,}"
