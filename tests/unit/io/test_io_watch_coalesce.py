"""The fewest events lead from what was told to what is there."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from services.io.watch.coalesce import NET, Changes, Now
from services.io.watch.model import EventType, FileEvent


@dataclass
class Disk:
    """A model of a tree: what each path holds, and the changes as a watch notes them."""

    files: dict[str, int]
    changes: Changes = field(default_factory=lambda: Changes(1000))
    writes: int = 1000

    def do(self, operation: str, path: str, target: str = "") -> None:
        known = path in self.files
        if operation == "create":
            self.changes.put(path, 0, known=known)
            self.files[path] = self.write()
        elif operation == "modify" and known:
            self.changes.change(path, 0, known=True)
            self.files[path] = self.write()
        elif operation == "notice" and known:
            self.changes.notice(path, 0, known=True)
        elif operation == "remove" and known:
            self.changes.lift(path, 0, known=True)
            del self.files[path]
        elif operation == "rename" and known and target != path:
            file = self.changes.lift(path, 0, known=True)
            self.changes.put(target, 0, known=target in self.files, file=file)
            self.files[target] = self.files.pop(path)

    def write(self) -> int:
        self.writes += 1
        return self.writes


def applied(events: list[FileEvent], told: dict[str, int], disk: dict[str, int]) -> dict[str, int]:
    """Returns what a caller knows after events: a rename moves what it knew, and reads nothing."""
    known = dict(told)
    for event in events:
        match event.type:
            case EventType.CREATED | EventType.MODIFIED:
                known[event.path] = disk[event.path]
            case EventType.REMOVED:
                del known[event.path]
            case EventType.RENAMED:
                known[event.path] = known.pop(event.old_path)
            case EventType.RESCAN:
                raise AssertionError
    return known


PATHS = st.sampled_from(["a", "b", "c", "d"])
OPERATIONS = st.tuples(
    st.sampled_from(["create", "modify", "notice", "remove", "rename", "rename"]), PATHS, PATHS
)


@given(st.dictionaries(PATHS, st.integers(0, 99)), st.lists(OPERATIONS, max_size=12), st.randoms())
def test_the_events_lead_from_the_old_tree_to_the_new_one(
    told: dict[str, int], operations: list[tuple[str, str, str]], random: object
) -> None:
    """A caller's tree is the new one after the events.

    Red when a rename forgets that the file changed on its way (MOVED_CHANGED as RENAMED alone),
    when a rename is told from a path that holds a file again, and when the table has REMOVED for a
    path whose file lies elsewhere.
    """
    disk = Disk(dict(told))
    for operation in operations:
        disk.do(*operation)

    events = disk.changes.take_events()

    assert applied(events, told, disk.files) == disk.files
    subjects = [event.path for event in events if event.type is not EventType.MODIFIED]
    assert len(set(subjects)) == len(subjects)


@given(
    st.dictionaries(PATHS, st.integers(0, 99)),
    st.lists(st.tuples(OPERATIONS, st.booleans()), max_size=12),
    st.sets(PATHS, min_size=1),
)
@settings(max_examples=1000)
def test_whoever_looks_late_for_what_was_told_before_is_told_again(
    told: dict[str, int],
    operations: list[tuple[tuple[str, str, str], bool]],
    told_before: set[str],
) -> None:
    """A caller looks at paths that the log tells of at any moment, and then for the events.

    Red when a file that came and went is told to nobody: who found it keeps it.
    """
    disk = Disk(dict(told))
    seen = dict(told)

    def look(paths: set[str]) -> None:
        for path in paths:
            seen.pop(path, None)
            if path in disk.files:
                seen[path] = disk.files[path]

    for operation, looks in operations:
        disk.do(*operation)
        look(told_before if looks else set())
    for event in disk.changes.take_events(lambda paths: paths & told_before):
        look({event.path, event.old_path})

    assert seen == disk.files


@given(st.dictionaries(PATHS, st.integers(0, 99)), st.lists(OPERATIONS, max_size=12), st.randoms())
def test_the_order_among_paths_does_not_matter(
    told: dict[str, int], operations: list[tuple[str, str, str]], random: object
) -> None:
    """Callers may apply the events of a message side by side, a path's own in order."""
    disk = Disk(dict(told))
    for operation in operations:
        disk.do(*operation)
    events = disk.changes.take_events()
    by_path: dict[str, list[FileEvent]] = {}
    for event in events:
        by_path.setdefault(event.path, []).append(event)
    groups = list(by_path.values())
    random.shuffle(groups)  # type: ignore[attr-defined]

    shuffled = [event for group in groups for event in group]

    assert applied(shuffled, told, disk.files) == disk.files


def test_the_table_has_an_answer_for_everything_that_can_be() -> None:
    """A path that callers do not know has no file of its own: the rest is there."""
    own = {Now.AWAY, Now.OWN, Now.OWN_AGAIN, Now.OWN_CHANGED}
    expected = {(known, now) for known in (False, True) for now in Now if known or now not in own}

    assert set(NET) == expected


def test_more_paths_than_are_kept_are_noticed() -> None:
    """Red when the bound drops paths without saying so: that would be silence."""
    fits, overfull = Changes(2), Changes(2)
    for path in ("a", "b"):
        fits.put(path, 0, known=False)
    for path in ("a", "b", "c"):
        overfull.put(path, 0, known=False)

    assert (fits.is_overfull, len(fits)) == (False, 2)
    assert (overfull.is_overfull, len(overfull)) == (True, 2)
