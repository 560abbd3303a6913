"""Commands that run where the kernel allows less."""

from __future__ import annotations

import subprocess

import pytest

WATCHES = "/proc/sys/user/max_inotify_watches"
INSTANCES = "/proc/sys/user/max_inotify_instances"


def with_limit(file: str, limit: int) -> list[str]:
    """Returns a command prefix that runs in a user namespace with a lower limit, or skips."""
    script = f'echo {limit} > {file} && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces with limits of their own are not to be had here")
    return prefix
