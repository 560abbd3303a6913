"""T7: nothing in a request is without a bound, whichever method and however deep it lies.

Red when `SearchFilter.symbols` lost the bound of its items, and when `WatchTreeRequest` got a field
`string note` without a rule.
"""

from __future__ import annotations

from typing import Any

import pytest

from deploy.reference.limits import FREE
from services.runtime.errors import InvalidRequestError
from services.runtime.validation import validate
from tests.support.contract_fields import SERVICES, fields_of, methods_of, set_field
from tests.support.contract_requests import Resources, fill
from tests.support.request_limits import excesses_of

RESOURCES = Resources("some", "workspaces/some/indexRuns/1", "some")
METHODS = dict(item for process in SERVICES for item in methods_of(process))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_each_field_of_a_request_has_an_upper_bound(method: Any) -> None:
    for path in fields_of(method.input_type):
        for name, values in excesses_of(path):
            request = fill(method, RESOURCES)
            validate(request)
            set_field(request, path, values)
            with pytest.raises(InvalidRequestError) as refused:
                validate(request)
            assert name in refused.value.metadata


def test_what_is_named_as_free_exists() -> None:
    """A field that is gone or has a bound by now does not stay in the list."""
    found = {path[-1].name for method in METHODS.values() for path in fields_of(method.input_type)}

    assert set(FREE) <= found
