"""Fixtures that tests of every kind may ask for."""

import gc
import os
import signal
from collections.abc import Generator

import pytest

# The workers of a run share the cores. Torch would start as many threads as there are cores in each
# of them and wait for them spinning, which takes three times as long. Services inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A run that a shell started in the background ignores Ctrl+C, and so would all that tests start and
# interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before they are imported: a helper that fails says what it compared.
pytest.register_assert_rewrite("tests.support", "tests.integration", "tests.faults", "tests.system")

pytest_plugins = ["tests.support.label_values", "tests.support.postgres", "tests.support.spans"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports all tests without looking for garbage among what they make, which stays for good.

    Each look goes over all modules read so far: that takes as long as reading them.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
