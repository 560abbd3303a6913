"""What the command line of `lodestone search` becomes: a request, or a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lodestone.indexer.v1.search_service_pb2 import SearchFilter, SearchNodesRequest
from services.cli import search_commands
from services.cli.__main__ import main
from services.cli.commands import cli
from services.cli.scope import Scope
from services.cli.search import search_request
from services.runtime.exits import ExitCode, StartError

if TYPE_CHECKING:
    from google.protobuf import descriptor

_RUN = "workspaces/tree/indexRuns/1"
_ALL = [
    *("how is json parsed", "--workspace", "tree", "--path", "/tree/src", "--limit", "7"),
    *("--glob", "*.py", "--glob", "a/**", "--lang", "python", "--lang", "go"),
    *("--kind", "class", "--kind", "method", "--symbol", "Router.add", "--symbol", "route"),
    *("--also", "libs", "--also", "webs"),
    *("--changed-since", _RUN, "--rerank", "--text", "signature", "--verify", "--explain"),
]
_NOT_OF_THE_COMMAND = {"page_token", "expand"}


def _request(arguments: list[str], folder: str = "") -> SearchNodesRequest:
    """The request of a command line."""
    context = search_commands.search.make_context("search", list(arguments))
    options = search_commands.search_options(context.params)
    return search_request(options, Scope("workspaces/tree", folder))


def test_each_flag_is_in_the_request() -> None:
    """Red when a line of the request is left out."""
    request = _request(_ALL)

    assert request == SearchNodesRequest(
        parent="workspaces/tree",
        other_parents=["workspaces/libs", "workspaces/webs"],
        query="how is json parsed",
        page_size=7,
        filter=SearchFilter(
            paths=["*.py", "a/**"],
            languages=["python", "go"],
            kinds=["class", "method"],
            symbols=["Router.add", "route"],
            changed_since_index_run=_RUN,
        ),
        with_text=True,
        signatures=True,
        verify=True,
        rerank=True,
        explain=True,
    )
    assert _fields(request) | _NOT_OF_THE_COMMAND == _known(request.DESCRIPTOR)
    assert _fields(request.filter) == _known(request.filter.DESCRIPTOR)


def test_more_workspaces_go_with_no_part_of_one() -> None:
    """Red when a folder's globs are held to the files of all of them."""
    with pytest.raises(StartError, match="--also goes with whole workspaces"):
        _request(["x", "--also", "libs"], "src")


def test_without_flags_the_server_decides() -> None:
    assert _request(["x"]) == SearchNodesRequest(
        parent="workspaces/tree", query="x", page_size=5, with_text=True, filter=SearchFilter()
    )


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (["--text", "none"], {"with_text": False}),
        (["--text", "full"], {"with_text": True}),
        (["--text", "signature"], {"with_text": True, "signatures": True}),
        (["--no-rerank"], {"rerank": False}),
        (["--verify"], {"verify": True}),
        (["--explain"], {"explain": True}),
    ],
)
def test_a_flag_changes_its_field_alone(flags: list[str], fields: dict[str, bool]) -> None:
    expected = _request(["x"])
    for name, value in fields.items():
        setattr(expected, name, value)

    assert _request(["x", *flags]) == expected


@pytest.mark.parametrize("command", ["search", "context", "graph"])
@pytest.mark.parametrize("option", ["--path", "--workspace"])
def test_what_is_searched_is_named_once(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when the last of two silently wins, or an empty one counts as none."""
    twice = main([command, "x", option, "aaaa", option, "bbbb"])
    empty = main([command, "x", option, ""])

    told = capsys.readouterr().err
    assert (twice, empty) == (ExitCode.USAGE, ExitCode.USAGE)
    assert f"'{option}': It is given once" in told
    assert f"'{option}': It is empty" in told


@pytest.mark.parametrize("command", ["search", "context", "graph"])
@pytest.mark.parametrize("asked", ["", " \n"])
def test_an_empty_question_is_refused(
    command: str, asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red when blanks are searched for, which finds anything."""
    assert main([command, asked]) == ExitCode.USAGE
    assert "It is empty" in capsys.readouterr().err


def test_an_argument_that_is_no_text_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes that are no UTF-8 end in no traceback."""

    def call(**_arguments: object) -> None:
        SearchNodesRequest(query="\udcff")

    monkeypatch.setattr(cli, "main", call)

    assert main(["search", "\udcff"]) == ExitCode.USAGE
    assert "not UTF-8" in capsys.readouterr().err


def _fields(message: SearchNodesRequest | SearchFilter) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


def _known(message: descriptor.Descriptor) -> set[str]:
    return {field.name for field in message.fields}
