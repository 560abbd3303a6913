"""Fixtures that tests of every kind may ask for."""

import gc
import os
from collections.abc import Generator

import pytest

# The workers of a run share the cores. Torch would start as many threads as there are cores in each
# of them and wait for them spinning, which takes three times as long. Services inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
