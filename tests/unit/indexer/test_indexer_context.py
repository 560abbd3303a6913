"""A context keeps its budget, quotes what files hold, and gives each text once."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.context.pack import MOST_MISSES, Fate, Packer, Piece, render
from services.indexer.context.tokens import estimate_tokens
from services.indexer.model import NodeId, NodeKind
from services.indexer.search.model import Hit

_FILE = "".join(
    f"def work_{number}(value, other):\n    total = value + {number}\n    return total\n\n"
    for number in range(40)
)
_LINE = st.text(st.sampled_from("abcXYZ_ 019(){}`\t\"'é漢🙂:#\\"), max_size=30)


def _hit(path: str, start: int, end: int, *, kind: NodeKind = NodeKind.FUNCTION) -> Hit:
    return Hit(
        workspace_name="tree",
        node_id=NodeId(start * 1000 + end),
        path=path,
        digest=bytes(32),
        kind=kind,
        qualified_name=f"name_{start}",
        language="python",
        start_byte=start,
        end_byte=end,
        start_line=1,
        end_line=1,
        score=1.0 / (1 + start),
    )


def _piece(content: str, first: int, last: int, path: str = "a.py", score: float = 1.0) -> Piece:
    """Returns the lines from first to last, 1-based, of a content."""
    lines = content.split("\n")
    start = len("\n".join([*lines[: first - 1], ""]).encode())
    text = "\n".join(lines[first - 1 : last])
    hit = _hit(path, start, start + len(text.encode()))
    return Piece(path, "python", start, first, text, (hit,))


def _cut(piece: Piece, first: int, last: int) -> Piece:
    """Returns some characters of a piece."""
    before, text = piece.text[:first], piece.text[first:last]
    start = piece.start_byte + len(before.encode())
    hit = _hit(piece.path, start, start + len(text.encode()))
    return Piece(piece.path, "python", start, piece.start_line + before.count("\n"), text, (hit,))


@st.composite
def _offers(draw: st.DrawFn) -> tuple[dict[str, str], list[Piece]]:
    files = {
        name: "\n".join(draw(st.lists(_LINE, min_size=1, max_size=25))) for name in ("a.py", "b.md")
    }
    pieces = []
    for _ in range(draw(st.integers(0, 12))):
        path = draw(st.sampled_from(sorted(files)))
        count = files[path].count("\n") + 1
        first = draw(st.integers(1, count))
        piece = _piece(files[path], first, draw(st.integers(first, count)), path)
        if draw(st.booleans()):  # a piece may begin and end inside of lines
            left_out = draw(st.integers(0, len(piece.text)))
            piece = _cut(piece, left_out, draw(st.integers(left_out, len(piece.text))))
        if piece.text:
            pieces.append(piece)
    return files, pieces


@given(offers=_offers(), budget=st.integers(1, 400), signatures=st.booleans())
def test_no_context_takes_more_than_its_budget_or_quotes_what_files_do_not_hold(
    offers: tuple[dict[str, str], list[Piece]], budget: int, *, signatures: bool
) -> None:
    """Red when `_replace` compares with the cost alone, and when `_join` takes the longer piece."""
    files, pieces = offers
    packer = Packer(budget, allow_signatures=signatures)
    for piece in pieces:
        packer.offer(piece)
    pack = packer.finish()

    assert pack.tokens == estimate_tokens(pack.text) <= budget
    for piece in pack.pieces:
        data = files[piece.path].encode()
        assert data[piece.start_byte : piece.end_byte].decode() == piece.text
        assert piece.start_line == 1 + data[: piece.start_byte].count(b"\n")
    spans = sorted((each.path, each.start_byte, each.end_byte) for each in pack.pieces)
    for (path, _, end), (next_path, start, _) in itertools.pairwise(spans):
        assert path != next_path or end <= start
    assert pack.text == "".join(map(render, pack.pieces)).rstrip("\n")


@given(text=st.lists(_LINE, max_size=10))
def test_the_count_of_a_text_is_the_sum_of_its_lines(text: list[str]) -> None:
    lines = [f"{line}\n" for line in text]

    assert estimate_tokens("".join(lines)) == sum(map(estimate_tokens, lines))


def test_nested_and_overlapping_pieces_are_one() -> None:
    packer = Packer(10_000, allow_signatures=False)

    assert packer.offer(_piece(_FILE, 5, 12)) is Fate.TAKEN
    assert packer.offer(_piece(_FILE, 6, 8)) is Fate.MERGED
    assert packer.offer(_piece(_FILE, 11, 15)) is Fate.MERGED
    (piece,) = packer.finish().pieces

    assert piece.text == "\n".join(_FILE.split("\n")[4:15])
    assert (piece.start_line, piece.end_line, len(piece.hits)) == (5, 15, 3)


def test_pieces_that_begin_inside_of_lines_are_counted_as_one_text() -> None:
    """Red when tokens of pieces are added up there too: a token may lie across an edge."""
    line = _piece("f((((x))))(abcdefghijkl, 012345)", 1, 1)
    for first, last in itertools.combinations(range(1, len(line.text)), 2):
        packer = Packer(10_000, allow_signatures=False)
        packer.offer(_cut(line, 0, last))
        packer.offer(_cut(line, first, len(line.text)))
        pack = packer.finish()

        assert pack.tokens == estimate_tokens(pack.text)


def test_a_file_that_grows_by_many_pieces_costs_little() -> None:
    """It took a quarter of a minute when all of it was counted with each piece.

    The time is of this process alone.
    """
    lines = "".join(
        f"int field_{number}(int x) {{ return x + {number}; }}\n" for number in range(9000)
    )
    pieces = [_piece(lines, first, first + 39) for first in range(1, 8900, 30)]
    packer = Packer(1_000_000, allow_signatures=True)
    started = time.process_time()

    for piece in pieces:
        packer.offer(piece)
    (whole,) = packer.finish().pieces

    assert time.process_time() - started < 3.0
    assert len(whole.hits) == len(pieces)


def test_a_copy_in_another_file_is_left_out_and_counted() -> None:
    packer = Packer(10_000, allow_signatures=False)
    packer.offer(_piece(_FILE, 1, 3, "a.py"))
    copy = "class Box:\n" + "\n".join(f"    {line}" for line in _FILE.split("\n")[:3])

    assert packer.offer(_piece(copy, 2, 4, "b.py")) is Fate.DUPLICATE
    assert packer.finish().duplicates == 1


def test_a_copy_of_a_part_of_what_is_given_is_left_out() -> None:
    """Of a method whose class stands there already; red when only whole pieces are compared."""
    packer = Packer(10_000, allow_signatures=False)
    packer.offer(_piece(_FILE, 1, 11, "a.py"))

    assert packer.offer(_piece(f"import os\n\n{_FILE}", 7, 9, "b.py")) is Fate.DUPLICATE
    assert packer.offer(_piece(_FILE, 5, 7, "a.py")) is Fate.MERGED
    assert packer.offer(_piece(_FILE, 9, 15, "b.py")) is Fate.TAKEN


def test_a_copy_that_holds_a_piece_of_its_file_is_left_out() -> None:
    """The second copy of a class, a method of which is given; red when it counts as an overlap."""
    packer = Packer(10_000, allow_signatures=False)
    packer.offer(_piece(_FILE, 5, 7, "b.py"))
    packer.offer(_piece(_FILE, 1, 15, "a.py"))

    assert packer.offer(_piece(_FILE, 1, 15, "b.py")) is Fate.DUPLICATE
    assert [(each.path, each.end_line) for each in packer.finish().pieces] == [
        ("a.py", 15),
        ("b.py", 7),
    ]


def test_files_stand_best_first_and_pieces_by_their_place() -> None:
    packer = Packer(10_000, allow_signatures=False)
    for first in (21, 5):
        packer.offer(_piece(_FILE, first, first + 2, "far.py"))
    packer.offer(_piece("x = 1\n", 1, 1, "near.py"))

    places = [(piece.path, piece.start_line) for piece in packer.finish().pieces]

    assert places == [("near.py", 1), ("far.py", 5), ("far.py", 21)]


def test_a_large_piece_does_not_push_out_those_below_it_unless_it_is_the_best() -> None:
    pieces = {
        "best.py": _piece("def best():\n    pass\n", 1, 2, "best.py"),
        "large.py": _piece(_FILE, 1, 19, "large.py"),
        "small.py": _piece(_FILE, 41, 43, "small.py"),
    }
    for order, expected in (
        (("best.py", "large.py", "small.py"), {"best.py", "small.py"}),
        (("large.py", "small.py"), {"large.py"}),
    ):
        packer = Packer(160, allow_signatures=False)
        for path in order:
            packer.offer(pieces[path])
        pack = packer.finish()

        assert {piece.path for piece in pack.pieces} == expected
        assert pack.over_budget == 1


def test_many_pieces_without_room_end_the_search_for_small_ones() -> None:
    packer = Packer(60, allow_signatures=False)
    packer.offer(_piece("x = 1\n", 1, 1, "best.py"))
    for number in range(MOST_MISSES):
        assert not packer.is_full
        assert packer.offer(_piece(_FILE, 1, 25, f"{number}.py")) is Fate.DEFERRED

    assert packer.is_full


def test_what_has_no_room_is_given_as_its_signature_when_that_is_allowed() -> None:
    body = "def work(value):\n" + "    value += 1\n" * 200
    for allowed, expected in ((True, ["def work(value):"]), (False, [])):
        packer = Packer(60, allow_signatures=allowed)
        packer.offer(_piece(body, 1, 201))
        pieces = packer.finish().pieces

        assert [piece.text for piece in pieces] == expected
        assert all(piece.signature_only for piece in pieces)
        assert all("(signature only)" in render(piece) for piece in pieces)


@pytest.mark.parametrize("run", ["```", "````", "``` ` `````"])
def test_a_fence_is_longer_than_any_in_its_code(run: str) -> None:
    text = render(_piece(f"before\n{run}\nafter\n", 1, 3))
    fence = text.split("\n")[1].removesuffix("python")

    assert set(fence) == {"`"}
    assert max(map(len, re.findall("`+", run))) < len(fence)
    assert text.count(f"\n{fence}\n") == 1


def test_a_name_of_a_file_cannot_break_the_line_of_its_citation() -> None:
    first = render(_piece("x = 1", 1, 1, "a\nb.py")).split("\n")[0]

    assert first.startswith("a b.py:1-1")
