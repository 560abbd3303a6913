"""Random changes, and those of git: who follows events knows what a scan finds."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.io.watch.model import EventType
from tests.unit.io.tree_changes import FILES, Monkey
from tests.unit.io.watching import QUICK, Client, applied, watch

if TYPE_CHECKING:
    from tests.unit.io.harness import MakeFiles


@pytest.mark.parametrize("seed", range(6))
def test_events_applied_to_the_old_listing_give_what_a_scan_finds(
    make_files: MakeFiles, seed: int
) -> None:
    """Random changes told in one window, so that a rename must carry what was known of the file.

    Red when a rename forgets that the file changed on its way.
    """
    top = make_files(FILES)
    monkey = Monkey(top, seed)
    options = replace(QUICK, quiet_seconds=0.2, max_wait_seconds=20)
    with watch(top, options=options) as watched:
        known = watched.scan()
        for _ in range(4):
            for _ in range(40):
                monkey.act()
            told = watched.events()
            now = watched.scan()
            assert all(event.type is not EventType.RESCAN for event in told)
            known = applied(told, known, now)
            assert known == now


@pytest.mark.parametrize("seed", range(10, 18))
def test_a_caller_that_follows_events_knows_what_a_scan_finds(
    make_files: MakeFiles, seed: int
) -> None:
    """Random changes told in windows so short that they part what belongs together.

    Red when a folder that went takes the watches of one that took them over (`release` without the
    look at who has the watch); red on a busy machine when a file that went and came back is not
    told: the caller looked while it was away.
    """
    top = make_files(FILES)
    monkey = Monkey(top, seed)
    options = replace(QUICK, quiet_seconds=0.001 * (seed % 3 + 1), max_wait_seconds=0.002)
    with watch(top, options=options) as watched:
        client = Client(watched)
        for _ in range(20):
            for _ in range(monkey.random.randrange(1, 40)):
                monkey.act()
                client.take()
            client.catch_up()
            assert client.known == watched.scan()
        assert client.rescans == 0


def test_a_checkout_of_git_is_told_as_a_scan_finds_it(make_files: MakeFiles) -> None:
    """Two branches with the same paths, other paths, and a folder where the other has a file."""
    top = make_files(FILES)

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        subprocess.run(["git", "-C", str(top), *who, *arguments], check=True, capture_output=True)

    git("init", "-q", "-b", "one")
    git("add", ".")
    git("commit", "-qm", "one")
    git("checkout", "-qb", "two")
    shutil.rmtree(top / "d")
    (top / "d").write_text("a file now")
    for number in range(300):
        place = top / f"m{number % 17}" / f"{number}.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(str(number))
    (top / "a.py").write_text("other")
    git("add", "-A")
    git("commit", "-qm", "two")
    with watch(top) as watched:
        known = watched.scan()
        for branch in ("one", "two", "one"):
            git("checkout", "-q", branch)
            told = watched.events()
            known = applied(told, known, watched.scan())
            assert known == watched.scan()
