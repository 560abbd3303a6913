"""What a search is about, and where its terms stand in a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lodestone.indexer.v1 import index_run_service_pb2 as runs_pb2
from lodestone.indexer.v1 import search_service_pb2 as search_pb2
from lodestone.indexer.v1.maintenance_service_pb2 import Disagreement
from lodestone.indexer.v1.search_service_pb2 import NodeHit, TextRange
from services.cli import check, context, graph, report, run_report
from services.cli.explain import explanation_json, print_explanation
from services.cli.hits import places, print_hits
from services.cli.reranking import tell_reranking
from services.cli.scope import Filters, Scope, around, existing_path
from services.runtime.exits import StartError

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOTS = "local=/,other=/srv"
_TREES = [
    ("workspaces/outer", "roots/local", "home/code"),
    ("workspaces/inner", "roots/local", "home/code/inner"),
    ("workspaces/other", "roots/other", "tree"),
    ("workspaces/unknown", "roots/unknown", ""),
]


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/home/code", Scope("workspaces/outer")),
        ("/home/code/a/b.py", Scope("workspaces/outer", "a/b.py")),
        ("/home/code/inner/a", Scope("workspaces/inner", "a")),
        ("/home/code/innermost", Scope("workspaces/outer", "innermost")),
        ("/srv/tree", Scope("workspaces/other")),
        ("/home/codes", None),
        ("/", None),
    ],
)
def test_the_innermost_tree_around_a_path_is_searched(path: str, scope: Scope | None) -> None:
    assert around(_TREES, Path(path), _ROOTS) == scope


@pytest.mark.parametrize(
    ("folder", "globs", "paths"),
    [
        ("", (), []),
        ("", ("*.py", "a/**"), ["*.py", "a/**"]),
        ("src", (), ["/src", "/src/**"]),
        ("src", ("*.py",), ["/src/**/*.py"]),
        ("src", ("a/**", "/b.py"), ["/src/a/**", "/src/b.py"]),
        ("we*rd", (), [r"/we\*rd", r"/we\*rd/**"]),
        ("we*rd", (r"\*.py",), [r"/we\*rd/**/\*.py"]),
    ],
)
def test_globs_are_of_what_lies_beneath_the_folder(
    folder: str, globs: tuple[str, ...], paths: list[str]
) -> None:
    message = Filters(globs=globs, kinds=("class",)).message(Scope("workspaces/tree", folder))

    assert list(message.paths) == paths
    assert list(message.kinds) == ["class"]


@pytest.mark.parametrize(
    ("freshness", "plain", "verified"),
    [
        (NodeHit.FRESHNESS_UNSPECIFIED, "", "  (not verified: its file cannot be read)"),
        (NodeHit.FRESHNESS_FRESH, "", "  (fresh)"),
        (NodeHit.FRESHNESS_MOVED, "  (moved to lines 7-9)", "  (moved to lines 7-9)"),
        (NodeHit.FRESHNESS_CHANGED, "  (the file changed since)", "  (the file changed since)"),
        (NodeHit.FRESHNESS_GONE, "  (gone)", "  (gone)"),
    ],
)
def test_a_hit_says_what_became_of_it(
    freshness: NodeHit.Freshness.ValueType,
    plain: str,
    verified: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is fresh says so where it was asked for."""
    hit = NodeHit(path="a.py", start_line=7, end_line=9, kind="function", freshness=freshness)

    for is_asked, note in ((False, plain), (True, verified)):
        print_hits([hit], "none", verified=is_asked)

        assert capsys.readouterr().out == f"a.py:7-9  function  0.000{note}\n"


def test_a_hit_without_its_text_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_hits([NodeHit(path="a.py", start_line=7, end_line=9, kind="function")], "short")

    told = capsys.readouterr().out.rstrip("\n")
    assert told == "a.py:7-9  function  0.000  (its text could not be read)"


def test_hits_of_several_workspaces_begin_with_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hit = NodeHit(
        workspace="workspaces/web", path="a.py", start_line=7, end_line=9, kind="function"
    )

    print_hits([hit], "none", with_workspaces=True)

    assert capsys.readouterr().out == "[web] a.py:7-9  function  0.000\n"


def test_matches_are_places_of_lines_and_columns() -> None:
    text = "é = 1\nfür = parse(é)\n"
    data = text.encode()
    start = data.index(b"parse")
    hit = NodeHit(
        text=text, matches=[TextRange(start=0, end=2), TextRange(start=start, end=start + 5)]
    )

    assert list(places(hit)) == [(1, 0, 1), (2, 6, 11)]


def test_lines_of_a_hit_have_the_numbers_that_they_have_in_the_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Red when other signs than ends of lines divide them, such as the form feeds of C and Lisp."""
    text = "def a():\r\n    x = '\u2028'\n\f\n    return x"
    hit = NodeHit(path="a.py", start_line=7, end_line=10, kind="function", text=text)

    print_hits([hit], "full")

    lines = capsys.readouterr().out.split("\n")[1:5]
    assert lines == [
        "     7 def a():",
        "     8     x = '\u2028'",
        "     9 \f",
        "    10     return x",
    ]


def test_a_path_cannot_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hit = NodeHit(path="a\x1b]0;t\x07\nb.py:1-9", start_line=7, end_line=9, kind="function")

    print_hits([hit], "none")

    assert capsys.readouterr().out == "a\ufffd]0;t\ufffd\ufffdb.py:1-9:7-9  function  0.000\n"


_TITLE = "Title > \x1b]0;t\x07"
"""A name as a heading of a document gives it."""


def _outcome() -> runs_pb2.Outcome:
    return runs_pb2.Outcome(path="a\x9b.md", qualified_name=_TITLE)


_PRINTS: dict[str, Callable[[], None]] = {
    "hit": lambda: print_hits([NodeHit(path="a.md", qualified_name=_TITLE)], "none"),
    "graph": lambda: graph._print(
        search_pb2.ExpandNodesResponse(
            starts=[NodeHit(node_id=1, path="a\x9b.md", qualified_name=_TITLE)],
            nodes=[NodeHit(node_id=2, path="a\x9b.md", qualified_name=_TITLE)],
            edges=[search_pb2.Edge(from_node_id=1, to_node_id=2)],
        )
    ),
    "failures": lambda: report.print_failures(runs_pb2.IndexRun(), [_outcome()]),
    "report": lambda: run_report._print_failures([_outcome()]),
    "check": lambda: check._print(1, [Disagreement(path="a\x9b.md", qualified_name=_TITLE)], ""),
    "context": lambda: context._print(f"a.md:1-2 {_TITLE}\n```\n\t{_TITLE}\n```"),
}


@pytest.mark.parametrize("printed", _PRINTS)
def test_a_name_out_of_a_file_cannot_command_a_terminal(
    printed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red when a name is printed as the file has it."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    _PRINTS[printed]()

    told = capsys.readouterr().out
    assert "Title > \ufffd]0;t\ufffd" in told
    assert not {"\x07", "\x9b"} & set(told)
    assert "\x1b]" not in told


def test_a_context_that_goes_to_a_program_is_as_files_have_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    context._print(f"a.md:1-2\n```\n{_TITLE}\n```")

    assert capsys.readouterr().out == f"a.md:1-2\n```\n{_TITLE}\n```\n"


def test_a_path_with_a_nul_is_none() -> None:
    with pytest.raises(StartError, match="no such file or folder"):
        existing_path("/\0a")


@pytest.mark.parametrize("reranking", search_pb2.Reranking.values())
def test_hits_that_were_to_be_reranked_and_are_not_are_told_on_standard_error(
    reranking: search_pb2.Reranking.ValueType, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_reranking(reranking)

    told = capsys.readouterr()
    is_fine = reranking in {search_pb2.RERANKING_UNSPECIFIED, search_pb2.RERANKING_DONE}
    assert told.out == ""
    assert ("Not reranked" in told.err) != is_fine


def test_an_explanation_tells_what_the_reranker_made_of_a_hit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = search_pb2.RerankExplanation(rank=2, score=0.75, rank_before=5)

    print_explanation(search_pb2.ExplainHitResponse(rerank=place))
    print_explanation(search_pb2.ExplainHitResponse())

    assert capsys.readouterr().out.count("rerank  2 of its list (0.75), 5 before it") == 1
    json = explanation_json(search_pb2.ExplainHitResponse(rerank=place))
    assert json["rerank"] == {"rank": 2, "score": 0.75, "rank_before": 5}
    assert explanation_json(search_pb2.ExplainHitResponse())["rerank"] is None


def test_an_explanation_shows_what_the_fused_score_is_made_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = search_pb2.ExplainHitResponse(
        fused_score=1.2, arms_score=0.5, outline_factor=0.8, definition=0.2, pooling_factor=2
    )

    print_explanation(told)

    assert "fused   (arms 0.5 x0.8 + definition 0.2) x2" in capsys.readouterr().out
    json = explanation_json(told)
    assert (json["arms_score"], json["outline_factor"]) == (0.5, 0.8)
    assert (json["definition"], json["pooling_factor"]) == (0.2, 2)
