"""`lodestone mcp`, by the package's own client over standard input and output, on a real stack."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.support.stack import clean_environment, finish, lodestone, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from tests.support.stack import Lodestone

_HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


@pytest.fixture(scope="module")
def stack() -> Iterator[Lodestone]:
    """The product with nothing running."""
    yield from lodestone(EMBED_MODEL="hashing")


@contextlib.asynccontextmanager
async def _assistant(product: Lodestone, folder: Path) -> AsyncGenerator[Client]:
    """Yields a client of a server that was started for a folder."""
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "services.cli", "mcp", "--path", str(folder)],
        env=_environment(product),
    )
    async with Client(stdio_client(parameters)) as client:
        yield client


def _environment(product: Lodestone) -> dict[str, str]:
    return {**clean_environment(), "LODESTONE_DATA_DIR": str(product.root), **product.settings}


async def _ask(client: Client, tool: str, **arguments: Any) -> str:
    """Calls a tool that must succeed; returns its text."""
    result = await client.call_tool(tool, arguments)
    text = result.content[0].text  # type: ignore[union-attr]
    assert not result.is_error, text
    return text


async def _fail(client: Client, tool: str, **arguments: Any) -> str:
    """Calls a tool that must fail; returns what it says."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return result.content[0].text  # type: ignore[union-attr]


async def test_an_assistant_starts_indexes_and_asks(stack: Lodestone, flask: Path) -> None:
    """Nothing runs before: the first call starts it all, and a later one starts it again.

    Red when only the first call looks whether the stack runs.
    """
    assert not stack.state.processes
    async with _assistant(stack, flask) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == {"search", "context", "read", "status", "index"}
        assert all(tool.description and len(tool.description) > 80 for tool in tools)
        read_only = {tool.name for tool in tools if tool.annotations.read_only_hint}  # type: ignore[union-attr]
        assert read_only == {"search", "context", "read", "status"}

        assert "Nothing is indexed" in await _ask(client, "status")
        assert "Call `index`" in await _fail(client, "search", query="x")
        assert "up to date" in await _ask(client, "index")
        assert str(flask) in await _ask(client, "status")

        hits = await _ask(client, "search", query="open_resource", kinds=["method"], limit=3)
        context = await _ask(client, "context", query="open_resource", token_budget=300)
        lines = await _ask(client, "read", path="app.py", start_line=1, end_line=3)

        assert "open_resource" in hits
        assert "open_resource" in context
        assert "as it was indexed" in lines
        assert "     1 " in lines

        assert stack.run("down").code == 0
        assert "hits in" in await _ask(client, "search", query="open_resource")


async def test_an_assistant_is_told_what_changed(stack: Lodestone, flask: Path) -> None:
    async with _assistant(stack, flask) as client:
        await _ask(client, "index")
        (flask / "config.py").write_text("def canary_setting():\n    return 1\n", "utf-8")

        hits = await _ask(client, "search", query="ConfigAttribute", paths=["config.py"])
        lines = await _ask(client, "read", path="config.py")
        assert "changed since it was indexed" in hits
        assert "canary_setting" not in hits
        assert "written since it was indexed" in lines
        assert "canary_setting" in lines

        await _ask(client, "index", folder=str(flask / "json"))  # all of the tree around it
        assert "canary_setting" in await _ask(client, "search", query="canary_setting", limit=1)


async def test_a_folder_inside_a_tree_is_searched_alone(stack: Lodestone, tmp_path: Path) -> None:
    """Red when its globs have no slash before them, or `paths` let it be forgotten."""
    paths = {"src/a.py", "src/lib/b.py", "tools/src/c.py", "we*rd/d.py", "weird/e.py", "tools/f.py"}
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("def odd_canary(value):\n    return value\n", "utf-8")
    asked: list[tuple[str, list[str], set[str]]] = [
        ("", [], paths),
        ("src", [], {"src/a.py", "src/lib/b.py"}),
        ("src", ["*.py"], {"src/a.py", "src/lib/b.py"}),
        ("src", ["lib/**"], {"src/lib/b.py"}),
        ("src", ["src/a.py"], {"src/a.py"}),
        ("tools/f.py", [], {"tools/f.py"}),
        ("we*rd", [], {"we*rd/d.py"}),
        ("", [r"we\*rd/**"], {"we*rd/d.py"}),
    ]
    async with _assistant(stack, tmp_path) as client:
        await _ask(client, "index")
        for folder, globs, expected in asked:
            where = {"folder": str(tmp_path / folder), "paths": globs}
            hits = await _ask(client, "search", query="odd_canary", limit=20, **where)
            context = await _ask(client, "context", query="odd_canary", **where)

            assert {path for path in paths if f" {path}:" in hits} == expected
            assert {path for path in paths if f"{path}:" in context} <= expected
        absent = str(tmp_path / "absent")
        assert "no such file or folder" in await _fail(client, "search", query="x", folder=absent)
        assert "no such" in await _fail(client, "index", folder=absent)
        assert "absolute" in await _fail(client, "search", query="x", folder="src")
        assert "query" in await _fail(client, "search", query=" \n")


async def test_wrong_calls_say_what_to_do(stack: Lodestone, flask: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (flask / ".env").write_text("SECRET=canary\n")
    async with _assistant(stack, flask) as client:
        await _ask(client, "index")

        assert str(flask) in await _fail(client, "search", query="x", folder=str(elsewhere))
        assert "lodestone index" in await _fail(client, "index", folder=str(elsewhere))
        assert "lodestone index" in await _fail(client, "index", folder="/")
        assert "limit" in await _fail(client, "search", query="x", limit=0)
        assert "query" in await _fail(client, "search")
        assert "gizmo" in await _fail(client, "search", query="x", kinds=["gizmo"])
        assert "before start_line" in await _fail(
            client, "read", path="app.py", start_line=5, end_line=4
        )
        for path in (".env", "../../etc/passwd", "/etc/passwd", "none.py"):
            assert "holds no file" in await _fail(client, "read", path=path)
        name = re.search(rf"workspaces/(\S+)  folder {flask}\n", await _ask(client, "status"))
        assert name is not None
        assert "hits in" in await _ask(client, "search", query="x", folder=name[1])


async def test_a_stack_that_cannot_start_is_told_and_the_server_lives_on(
    stack: Lodestone, flask: Path
) -> None:
    broken = stack.with_settings(INDEXER_LEASE_SECONDS="never")
    async with _assistant(broken, flask) as client:
        told = await _fail(client, "status")
        assert "LODESTONE_INDEXER_LEASE_SECONDS" in told
        assert "lodestone doctor" in told
        assert (await client.list_tools()).tools


@pytest.mark.parametrize("how", ["input ends", "both ends close", "terminated", "interrupted"])
def test_the_server_ends_when_its_client_hangs_up(stack: Lodestone, flask: Path, how: str) -> None:
    """In the middle of a call; nothing but the protocol is on standard output.

    Red when it waits at Ctrl+C for its input to end, which a terminal's does not.
    """
    signals = {"terminated": signal.SIGTERM, "interrupted": signal.SIGINT}
    server = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "mcp", "--path", str(flask)],
        env=_environment(stack),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    messages: list[dict[str, Any]] = [
        {"id": 1, "method": "initialize", "params": _HELLO},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "status", "arguments": {}}},
    ]
    for message in messages:
        server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        server.stdin.flush()
    assert json.loads(server.stdout.readline())["id"] == 1
    call = {"name": "index", "arguments": {"wait_seconds": 60}}
    server.stdin.write(
        json.dumps({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": call}) + "\n"
    )
    server.stdin.flush()
    assert json.loads(server.stdout.readline())["id"] == 2
    match how:
        case "both ends close":
            server.stdout.close()
            server.stdout = None
            server.stdin.close()
            server.stdin = None
        case "terminated" | "interrupted":
            server.send_signal(signals[how])
            try:
                server.wait(20)  # while its input is open
            finally:
                server.kill()
    done = finish(server, 20)

    for line in done.stdout.splitlines() if done.stdout else []:
        assert json.loads(line)["jsonrpc"] == "2.0"
    assert done.code == -signals.get(how, 0), done.stderr
    assert "Traceback" not in done.stderr


def test_search_watches_the_index(stack: Lodestone, flask: Path, tmp_path: Path) -> None:
    """It tells the hits once, and again after a run changed them, of any workspace it searches."""
    other = tmp_path / "watched"
    other.mkdir()
    (other / "one.py").write_text("one = 1\n", "utf-8")
    also = stack.index(other)["workspace"]
    stack.index(flask)
    asked = ("search", "canary_watch", "--path", str(flask), "--also", also, "-k", "2")
    watch = stack.start(*asked, "--watch", "--json")
    assert watch.stdout is not None
    first = json.loads(watch.stdout.readline())
    (flask / "watched.py").write_text("def canary_watch():\n    return 1\n", "utf-8")
    stack.index(flask)
    second = json.loads(watch.stdout.readline())
    (other / "one.py").write_text("def canary_watch():\n    return 1\n", "utf-8")
    stack.index(other)
    third = json.loads(watch.stdout.readline())
    watch.send_signal(signal.SIGINT)
    done = finish(watch, 20)

    assert first[0]["name"] != "canary_watch"
    assert second[0]["name"] == "canary_watch"
    assert second[0]["matches"] == [[4, 16]]
    assert {hit["path"] for hit in third} == {"watched.py", "one.py"}
    assert (done.code, done.stdout) == (130, "")


def test_commands_filter_and_fill_a_budget(stack: Lodestone, flask: Path) -> None:
    stack.index(flask)
    arguments = ("--path", str(flask), "--glob", "*.py", "--lang", "python", "--kind", "method")

    found = stack.run("search", "open resource", *arguments, "--text", "none", "--json").json
    plain = stack.run("search", "open resource", *arguments, "--text", "full")
    context = stack.run("context", "open resource", *arguments, "--budget", "400", "--json").json
    printed = stack.run("context", "open resource", *arguments, "--budget", "400")

    assert {hit["kind"] for hit in found} == {"method"}
    assert not any(hit["text"] for hit in found)
    assert "more lines" not in plain.stdout
    assert 0 < context["tokens"] <= 400
    assert printed.stdout.rstrip("\n") == context["text"]
    assert "pieces, about" in printed.stderr
    assert stack.run("search", "x", "--path", str(flask), "--kind", "gizmo").code == 2


async def test_a_search_and_a_context_take_several_workspaces(
    stack: Lodestone, flask: Path, tmp_path: Path
) -> None:
    """By the command, and by an assistant's tool; red when either forgets the others."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "canary.py").write_text("def open_canary_resource():\n    return 1\n", "utf-8")
    stack.index(flask)
    stack.index(other)
    newest = stack.run("runs", "--json", "--limit", "1").json[0]
    name = newest["workspace"].removeprefix("workspaces/")
    also = ("open_canary_resource", "--also", name, "--json")
    asked = ("context", *also, "--budget", "500")

    hits = stack.run("search", *also, "--path", str(flask), "-k", "20").json
    found = stack.run(*asked, "--path", str(flask)).json
    inside = stack.run(*asked, "--path", str(flask / "json"))
    async with _assistant(stack, flask) as client:
        told = await _ask(
            client, "context", query="open_canary_resource", other_folders=[str(other)]
        )
        alone = await _ask(client, "context", query="open_canary_resource")
        searched = await _ask(
            client, "search", query="open_canary_resource", other_folders=[str(other)]
        )
        refused = await _fail(
            client, "context", query="x", folder=str(flask / "json"), other_folders=[name]
        )
        lines = await _ask(client, "read", path="canary.py", folder=name)

    assert (f"workspaces/{name}", "canary.py") in {(hit["workspace"], hit["path"]) for hit in hits}
    assert len({hit["workspace"] for hit in hits}) == 2
    assert f". [{name}] canary.py:1-2  open_canary_resource" in searched
    pieces = {(piece["workspace"], piece["path"]) for piece in found["pieces"]}
    assert (f"workspaces/{name}", "canary.py") in pieces
    assert len({workspace for workspace, _ in pieces}) == 2
    assert (inside.code, "--also" in inside.stderr) == (2, True)
    assert f"[{name}] canary.py:1-2 open_canary_resource" in told
    assert "canary" not in alone
    assert "as wholes" in refused
    assert "open_canary_resource" in lines


def test_the_stack_still_runs_after_its_assistants(stack: Lodestone) -> None:
    """Services outlive the server that started them."""
    wait_until(lambda: stack.run("status", "--json").code == 0, 20, "the stack serves")
