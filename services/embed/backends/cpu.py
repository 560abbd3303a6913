"""What this machine's CPU can do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import psutil

MOST_STREAMS: Final = 16
"""Above this many streams each gets several threads: more batches at once only cost latency."""
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
_CPU_INFO = Path("/proc/cpuinfo")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Returns the physical cores that this process may use, by its affinity and its quota."""
    affinity = len(os.sched_getaffinity(0))
    cores = min(affinity, psutil.cpu_count(logical=False) or affinity)
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    if quota.isdigit() and int(period) > 0:
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def has_fast_bfloat16() -> bool:
    """Tells whether the CPU multiplies bfloat16; without it each number is converted twice."""
    return bool(_BFLOAT16_FLAGS & set(_fact("flags").split()))


def model_name() -> str:
    """Returns what the CPU calls itself, with its flags: where this differs, measure again."""
    return f"{_fact('model name')} {_fact('flags')}"


def _fact(name: str) -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
