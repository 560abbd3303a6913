"""Fixtures that tests of every kind may ask for."""

import pytest

# Before they are imported: a helper that fails says what it compared.
pytest.register_assert_rewrite("tests.support", "tests.integration", "tests.faults", "tests.system")

pytest_plugins = ["tests.support.postgres", "tests.support.spans"]
