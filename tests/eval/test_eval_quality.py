"""Search stays as good as it was: small trees, real services, the real model."""

from __future__ import annotations

import pytest

from tests.eval.gate import CORPORA, losses, measure, read_record
from tests.support import corpora


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_search_is_as_good_as_its_recorded_scores() -> None:
    """Went red when `rank` gave hits back in the order of their ids."""
    for corpus in corpora.read_list():
        if corpus.name in CORPORA:
            corpora.fetch(corpus, corpora.ROOT)

    assert losses(read_record(), await measure()) == {}
