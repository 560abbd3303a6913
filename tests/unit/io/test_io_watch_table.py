"""What docs/files.md says several changes of a file are told as is what they are told as."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from services.io.watch.coalesce import NET, Now
from services.io.watch.model import EventType
from tests.unit.io.test_io_watch_coalesce import Disk

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCUMENT = Path(__file__).parents[3] / "docs/files.md"
WORDS = re.compile("created|modified|removed|renamed|nothing")
CREATED, MODIFIED, REMOVED, RENAMED = (
    EventType.CREATED,
    EventType.MODIFIED,
    EventType.REMOVED,
    EventType.RENAMED,
)
Told = list[tuple[EventType, str, str]]


def documented_rows(*columns: str) -> dict[tuple[str, ...], set[str]]:
    """Returns the rows of the table with these columns, and the events that the last one names.

    What stands behind a colon there says why.
    """
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    rows = DOCUMENT.read_text().partition(head)[2].partition("\n\n")[0].splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows]
    return {tuple(key): set(WORDS.findall(told.partition(":")[0])) for *key, told in cells}


def names(kinds: Iterable[EventType]) -> set[str]:
    return {kind.name.lower() for kind in kinds} or {"nothing"}


NOWS: dict[tuple[str, str], tuple[Now, ...]] = {
    ("no file", "a file"): (Now.NEW,),
    ("no file", "the file of a path that is empty now"): (Now.MOVED, Now.MOVED_CHANGED),
    ("no file", "none, where the log tells of one"): (Now.NOTHING_AGAIN,),
    ("a file", "none"): (Now.NOTHING, Now.NOTHING_AGAIN),
    ("a file", "the same, written to"): (Now.OWN_CHANGED,),
    ("a file", "another one"): (Now.NEW,),
    ("a file", "the file of a path that is empty now"): (Now.MOVED, Now.MOVED_CHANGED),
    ("a file", "none, as it was renamed"): (Now.AWAY,),
    ("a file", "the same, untouched"): (Now.OWN,),
    ("a file", "the same, which was away for a while"): (Now.OWN_AGAIN,),
}
"""By the first two cells of a row of the document: what the path holds now."""


def test_the_document_says_what_a_path_is_told_as() -> None:
    """Red when a row of docs/files.md and `NET` differ, or one of them has more."""
    made = {
        row: set.union(*(names(NET[row[0] == "a file", now]) for now in nows))
        for row, nows in NOWS.items()
    }
    assert documented_rows("before", "now", "told as") == made
    answered = {(row[0] == "a file", now) for row, nows in NOWS.items() for now in nows}
    assert set(NET) - answered == {(False, Now.NOTHING)}
    assert NET[False, Now.NOTHING] == ()


class Case(NamedTuple):
    """Changes of a tree that has `a` and `b`, by the row they are of, and the events of them."""

    changes: str
    operations: list[tuple[str, ...]]
    events: Told
    told_before: frozenset[str] = frozenset()


CASES = [
    Case("created, modified", [("create", "n"), ("modify", "n")], [(CREATED, "n", "")]),
    Case("created, removed", [("create", "n"), ("remove", "n")], []),
    Case(
        "created, removed",
        [("create", "n"), ("remove", "n")],
        [(REMOVED, "n", "")],
        frozenset({"n"}),
    ),
    Case("created, renamed", [("create", "n"), ("rename", "n", "m")], [(CREATED, "m", "")]),
    Case("modified, modified", [("modify", "a"), ("modify", "a")], [(MODIFIED, "a", "")]),
    Case("modified, removed", [("modify", "a"), ("remove", "a")], [(REMOVED, "a", "")]),
    Case("removed, created", [("remove", "a"), ("create", "a")], [(MODIFIED, "a", "")]),
    Case(
        "renamed, renamed back",
        [("rename", "a", "n"), ("rename", "n", "a")],
        [(MODIFIED, "a", "")],
    ),
    Case(
        "renamed, renamed back",
        [("rename", "a", "n"), ("modify", "n"), ("rename", "n", "a")],
        [(MODIFIED, "a", "")],
    ),
    Case(
        "renamed, modified; modified, renamed",
        [("rename", "a", "n"), ("modify", "n")],
        [(RENAMED, "n", "a"), (MODIFIED, "n", "")],
    ),
    Case(
        "renamed, modified; modified, renamed",
        [("modify", "a"), ("rename", "a", "n")],
        [(RENAMED, "n", "a"), (MODIFIED, "n", "")],
    ),
    Case("renamed, removed", [("rename", "a", "n"), ("remove", "n")], [(REMOVED, "a", "")]),
    Case(
        "renamed `a` to `b`, `b` to `c`",
        [("rename", "a", "n"), ("rename", "n", "m")],
        [(RENAMED, "m", "a")],
    ),
    Case(
        "saved by writing another file and renaming it onto this one",
        [("create", "n"), ("rename", "n", "a")],
        [(MODIFIED, "a", "")],
    ),
    Case(
        "moved to a backup and written anew",
        [("rename", "a", "n"), ("create", "a"), ("remove", "n")],
        [(MODIFIED, "a", "")],
    ),
    Case(
        "moved to a backup and written anew",
        [("rename", "a", "n"), ("create", "a")],
        [(MODIFIED, "a", ""), (CREATED, "n", "")],
    ),
    Case(
        "exchanged with another",
        [("rename", "a", "n"), ("rename", "b", "a"), ("rename", "n", "b")],
        [(MODIFIED, "a", ""), (MODIFIED, "b", "")],
    ),
]


def told(operations: list[tuple[str, ...]], told_before: frozenset[str] = frozenset()) -> Told:
    """Returns the events of changes to a tree that has `a` and `b`, sorted."""
    disk = Disk({"a": 1, "b": 2})
    for operation in operations:
        disk.do(*operation)
    events = disk.changes.take_events(lambda paths: paths & told_before)
    return sorted((event.type, event.path, event.old_path) for event in events)


@pytest.mark.parametrize("case", CASES, ids=[case.changes for case in CASES])
def test_changes_make_the_events_of_a_row_of_the_table(case: Case) -> None:
    assert told(case.operations, case.told_before) == sorted(case.events)


def test_the_document_says_what_changes_are_told_as() -> None:
    """Red when a row of docs/files.md has no case here, or names other events than its cases."""
    made: dict[tuple[str, ...], set[str]] = {}
    for case in CASES:
        events = told(case.operations, case.told_before)
        made.setdefault((case.changes,), set()).update(names(kind for kind, _, _ in events))
    assert documented_rows("changes", "told as") == made


@pytest.mark.parametrize(
    ("operations", "events"),
    [([("rename", "a", "b")], [(RENAMED, "b", "a")]), ([("notice", "a")], [])],
)
def test_single_changes_that_might_look_like_two(
    operations: list[tuple[str, ...]], events: Told
) -> None:
    """A file renamed onto another, and one that was only looked at."""
    assert told(operations) == events
