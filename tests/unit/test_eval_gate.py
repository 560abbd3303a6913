"""What holds search to its recorded scores tells a loss, and no play of chance."""

from __future__ import annotations

import pytest

from tests.eval.gate import losses, read_record, record

_BEFORE = [(number % 10) / 10 for number in range(60)]


@pytest.mark.parametrize(
    ("now", "is_loss"),
    [
        (_BEFORE, False),
        ([score + 0.05 for score in _BEFORE], False),
        ([score - 0.05 for score in _BEFORE], True),
        ([1 - score for score in _BEFORE], False),
        ([*(score - 0.2 for score in _BEFORE[:30]), *_BEFORE[30:]], True),
        ([_BEFORE[0] - 0.3, *_BEFORE[1:]], False),
    ],
    ids=["equal", "better", "each a little worse", "others", "half of them worse", "one worse"],
)
def test_a_loss_of_more_than_its_interval_is_told(now: list[float], *, is_loss: bool) -> None:
    """Red when nothing is ever told, and when a mean that fell is a loss by itself."""
    assert ("fused" in losses(record({"fused": _BEFORE}), {"fused": now})) is is_loss


def test_other_questions_than_were_recorded_are_no_comparison() -> None:
    with pytest.raises(AssertionError, match="other questions"):
        losses(record({"fused": _BEFORE}), {"fused": _BEFORE[1:]})


def test_what_users_get_and_each_arm_are_recorded() -> None:
    """Red when a record is lost: what is not recorded is not compared."""
    stages = ("lexical", "dense", "fused", "fused + priors")
    names = {*(f"questions, {stage}" for stage in stages), "tasks, fused + priors"}
    recorded = read_record()

    assert set(recorded) == names
    assert all(len(each["scores"]) >= 50 for each in recorded.values())
