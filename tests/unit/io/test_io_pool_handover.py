"""A worker that does not take its job is as late as one that does not answer."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from services.io.parser.pool import JOB_FILES
from tests.unit.io.test_io_pool import job, outcome_of, running, worker_pid

if TYPE_CHECKING:
    from tests.unit.io.harness import MakeFiles

pytestmark = pytest.mark.slow


async def test_the_limit_of_time_covers_the_handing_over_of_a_job(make_files: MakeFiles) -> None:
    """The job is longer than the pipe holds. Red when the write to it has no limit of time."""
    top = make_files({"a.py": "a = 1\n"})
    long = job(top, *("é" * 2000 for _ in range(JOB_FILES)))
    async with running(timeout_seconds=1.0) as pool:
        assert [outcome_of(answer) async for answer in pool.parse(job(top, "a.py"))] == [
            (0, "parsed")
        ]
        os.kill(await worker_pid(pool), signal.SIGSTOP)
        async with asyncio.timeout(20):
            first = outcome_of(await anext(pool.parse(long)))
    assert first == (0, "TIMEOUT")
