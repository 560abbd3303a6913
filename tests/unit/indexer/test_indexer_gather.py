"""Changes gather until a run over them is due: nothing is lost, nothing waits for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.indexer.live.gather import Gatherer, GatherRules
from services.indexer.run_spec import RunTrigger

if TYPE_CHECKING:
    from services.indexer.live.gather import Batch

_RULES = GatherRules(
    debounce_seconds=0.5, max_wait_seconds=2.0, max_paths=5, reconcile_seconds=100.0
)


def _gatherer() -> Gatherer:
    return Gatherer(_RULES, 100.0)


def _taken(gatherer: Gatherer, now: float) -> Batch:
    batch = gatherer.take(now)
    assert batch is not None
    return batch


def test_a_change_waits_for_quiet() -> None:
    gatherer = _gatherer()
    gatherer.add(["a"], 0.9, 1.0)
    gatherer.add(["b"], 1.2, 1.3)

    assert gatherer.take(1.7) is None
    assert gatherer.due_at() == pytest.approx(1.8)
    batch = _taken(gatherer, 1.8)
    assert batch.paths == ("a", "b")
    assert batch.noted == (0.9, 1.2)
    assert batch.trigger is RunTrigger.CHANGES


def test_changes_without_end_wait_no_longer_than_the_longest_wait() -> None:
    """Red without the longest wait: quiet never comes."""
    gatherer, now = _gatherer(), 0.0
    while gatherer.take(now) is None:
        gatherer.add(["a"], now, now)
        now += 0.1
        assert now < 2.2

    assert now >= 2.0


def test_what_comes_while_a_batch_is_out_is_the_next_one() -> None:
    gatherer = _gatherer()
    gatherer.add(["a"], 0, 0)
    _taken(gatherer, 1)
    gatherer.add(["a"], 1.1, 1.1)
    gatherer.add(["b"], 1.2, 1.2)

    assert gatherer.due_at() is None
    assert gatherer.take(50) is None
    gatherer.ended(51)
    assert _taken(gatherer, 51).paths == ("a", "b")


def test_too_many_paths_are_the_whole_tree() -> None:
    gatherer = _gatherer()
    gatherer.add([f"p{number}" for number in range(6)], 1, 1)

    batch = _taken(gatherer, 2)

    assert batch.paths == ()
    assert batch.trigger is RunTrigger.RECONCILE
    assert not batch.is_scheduled
    assert batch.noted == (1.0,) * 6


def test_a_rescan_is_the_whole_tree() -> None:
    gatherer = _gatherer()
    gatherer.add(["a"], 1, 1)
    gatherer.rescan(1.1)

    assert _taken(gatherer, 2).paths == ()


def test_the_whole_tree_is_due_at_times_counted_from_its_last_end() -> None:
    gatherer = _gatherer()

    assert gatherer.take(99.9) is None
    assert _taken(gatherer, 100).is_scheduled
    gatherer.ended(130)
    assert gatherer.due_at() == 230


def test_a_change_puts_the_look_through_the_tree_not_off() -> None:
    """Red when a run over changes counts as a look through the tree."""
    gatherer = _gatherer()
    gatherer.add(["a"], 50, 50)
    _taken(gatherer, 51)
    gatherer.ended(52)

    assert gatherer.due_at() == 100


def test_a_look_that_is_put_off_holds_no_change_up() -> None:
    """Red when a look whose time came takes the changes with it: behind a paused run, for ever."""
    gatherer = _gatherer()
    gatherer.add(["a"], 100, 100)
    assert _taken(gatherer, 100.2).is_scheduled
    gatherer.put_off(100.3)

    assert _taken(gatherer, 100.5).paths == ("a",)
    gatherer.ended(101)
    assert gatherer.due_at() == pytest.approx(160.3)


def test_a_batch_that_failed_is_followed_by_one_over_the_tree_after_a_rest() -> None:
    """Red when it is forgotten."""
    gatherer = _gatherer()
    gatherer.add(["a"], 1, 1)
    _taken(gatherer, 2)
    gatherer.failed(3)

    assert gatherer.take(3.9) is None
    again = _taken(gatherer, 4)
    assert again.paths == ()
    assert again.noted == (1.0,)
    gatherer.failed(5)
    assert gatherer.due_at() == 7, "it rests longer each time"


def test_a_batch_that_could_not_be_queued_is_taken_again_with_what_came_since() -> None:
    gatherer = _gatherer()
    gatherer.add(["a"], 1, 1)
    _taken(gatherer, 2)
    gatherer.add(["b"], 2.5, 2.5)
    gatherer.put_off(3)

    assert _taken(gatherer, 5).paths == ("a", "b")


def test_others_that_wait_get_longer_and_longer_times() -> None:
    """Red without the rest: runs over changes would keep a bulk run from its end for ever."""
    gatherer, now, rests = _gatherer(), 0.0, []
    for _ in range(5):
        gatherer.add(["a"], now, now)
        due = gatherer.due_at()
        assert due is not None
        rests.append(due - now)
        now = due
        _taken(gatherer, now)
        gatherer.ended(now, others_wait=True)

    assert rests == [0.5, 1, 2, 4, 8]
    gatherer.add(["a"], now, now)
    now += 16
    _taken(gatherer, now)
    gatherer.ended(now)
    gatherer.add(["a"], now, now)
    assert gatherer.due_at() == now + 0.5


def test_what_was_gathered_of_a_tree_that_went_is_forgotten() -> None:
    gatherer = _gatherer()
    gatherer.add(["a"], 1, 1)
    gatherer.forget()

    assert gatherer.due_at() == 100


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abcdefghij")),
        st.tuples(st.just("wait"), st.floats(0.01, 3.0)),
        st.tuples(st.sampled_from(["rescan", "succeed", "fail", "put_off"]), st.none()),
    ),
    max_size=60,
)


class _Model:
    """The plainest there is: what is not known to be indexed."""

    def __init__(self) -> None:
        self.gatherer = Gatherer(_RULES, 1e9)
        self.now = 0.0
        self.dirty: set[str] = set()
        self.at_work: set[str] = set()
        self.out: Batch | None = None

    def step(self, kind: str, value: object) -> None:
        match kind, value:
            case "add", str(path):
                self.dirty.add(path)
                self.gatherer.add([path], self.now, self.now)
            case "wait", float(seconds):
                self.now += seconds
            case "rescan", _:
                self.dirty.add("lost")
                self.gatherer.rescan(self.now)
            case _:
                self.end(kind)
        self.take()

    def end(self, how: str) -> None:
        if self.out is None:
            return
        if how == "succeed":
            self.gatherer.ended(self.now)
        else:
            (self.gatherer.failed if how == "fail" else self.gatherer.put_off)(self.now)
            self.dirty |= self.at_work
        self.out, self.at_work = None, set()

    def take(self) -> None:
        if self.out is not None or (out := self.gatherer.take(self.now)) is None:
            return
        assert len(out.paths) <= _RULES.max_paths
        self.out = out
        self.at_work = self.dirty & set(out.paths) if out.paths else set(self.dirty)
        self.dirty -= self.at_work


@settings(deadline=None, max_examples=300)
@given(_STEPS)
def test_every_change_is_in_a_batch_that_was_indexed_after_it(
    steps: list[tuple[str, object]],
) -> None:
    """Red when `failed` drops its batch, and when `put_off` forgets that it was of the tree."""
    model = _Model()
    for kind, value in steps:
        model.step(kind, value)
    for _ in range(4):
        model.end("succeed")
        model.now += 200
        model.take()
    assert not model.dirty
    assert not model.at_work
