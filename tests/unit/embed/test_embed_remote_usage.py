"""What a provider says that a request used is taken back from its limit, if it can be true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.embeddings_api import Step, serving_embeddings
from tests.unit.embed.harness import infer_one, remote_model


@pytest.mark.parametrize("told", [10**12, 10**400], ids=["years", "no float"])
def test_a_number_of_tokens_that_cannot_be_true_holds_nobody_up(told: int) -> None:
    """Red when it is taken as it is: no request goes for years, or the vectors count as bad."""

    def change(message: dict[str, Any]) -> dict[str, Any]:
        return {**message, "usage": {"total_tokens": told}}

    with serving_embeddings() as provider:
        provider.steps.append(Step(change=change))
        model = remote_model(
            provider.url, remote_tokens_per_minute=60_000, remote_deadline_seconds=5.0
        )
        try:
            first, second = infer_one(model), infer_one(model)
        finally:
            model.backend.close()

    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    assert np.array_equal(first, second)
