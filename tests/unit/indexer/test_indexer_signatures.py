"""The head of a declaration, by a rule on its text, is what its grammar has before the body."""

from __future__ import annotations

import re
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.indexer.search.signatures import MOST_LINES, signature_of
from services.io.parser.declarations import Declarations, Shape
from services.io.parser.grammars import Grammars
from services.io.parser.languages import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree_sitter import Node

_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
_MODULES = ("argparse.py", "dataclasses.py", "tarfile.py", "typing.py", "asyncio/base_events.py")

_COMMENTS = re.compile(r":(\s*#[^\n]*)+\Z")
"""The grammar counts comments behind the colon to the head."""

_SAMPLES = {
    "python": "@route('/a:b')\ndef f(a: dict = {'k': 1},\n  b=lambda: 0) -> x[1:2]:\n    pass\n",
    "javascript": "function* f({ a, b }, c = [1]) {\n  return `{${a}`;\n}\n",
    "typescript": "async function f<T>(a: T, b: string = '{'): Promise<T> {\n  return a;\n}\n",
    "tsx": "function View({ a }: Props): JSX.Element {\n  return <p>{a}</p>;\n}\n",
    "go": "func (s *Server) F(a int, b ...string) (int, error) {\n\treturn 0, nil\n}\n",
    "rust": "fn f<'a, T>(x: &'a str) -> Option<T>\nwhere\n    T: Copy,\n{\n    None\n}\n",
    "java": "public static <T> List<T> f(Map<String, T> a) throws E {\n  return null;\n}\n",
    "c": "static int f(const char *a, int (*b)(int))\n{\n  return 0;\n}\n",
    "cpp": "template <typename T>\nauto f(T a) noexcept -> int {\n  return 1;\n}\n",
    "kotlin": "suspend fun <T> f(a: T, b: (Int) -> Unit): List<T> {\n  return listOf(a)\n}\n",
    "swift": "public func f<T>(_ a: T, b: Int = 1) throws -> [T] {\n  return [a]\n}\n",
    "scala": "def f[T](a: T)(implicit b: Int): List[T] = {\n  List(a)\n}\n",
    "php": "<?php\nfunction f(array $a, string $b = '{'): ?int {\n  return 1;\n}\n",
    "c-sharp": "class A {\n  public int F(string a, int b = 1) {\n    return 1;\n  }\n}\n",
    "ruby": "def f(a, b = {},\n      *c)\n  a\nend\n",
    "bash": "f() {\n  echo 1\n}\n",
}


def _declared(text: str, language: str) -> Iterator[tuple[str, str]]:
    """Yields the whole and the head of each function and class, by the grammar."""
    data = text.encode()
    rules = Declarations(RULES[language])
    waiting: list[Node] = [Grammars().parser(language).parse(data).root_node]
    while waiting:
        node = waiting.pop()
        found = rules.of(node)
        if found is not None and found.shape is not Shape.CONTAINER and found.body is not None:
            head = found.signature(data)
            outer = found.outer
            whole = data[outer.start_byte : outer.end_byte].decode()
            yield whole, data[head.start : head.end].decode()
        else:
            waiting.extend(node.named_children)


@pytest.mark.parametrize("language", sorted(RULES))
def test_every_language_has_a_rule_that_agrees_with_its_grammar(language: str) -> None:
    for whole, head in _declared(_SAMPLES[language], language):
        found = signature_of(whole, language)

        assert found is not None
        assert found.removesuffix("{").rstrip() == head.removesuffix("{").rstrip()


@pytest.mark.parametrize("module", _MODULES)
def test_the_rule_agrees_with_the_grammar_on_the_standard_library(module: str) -> None:
    seen = 0
    for whole, head in _declared((_LIBRARY / module).read_text("utf-8"), "python"):
        expected = _COMMENTS.sub(":", head)
        if head.count("\n") < MOST_LINES:
            assert signature_of(whole, "python") == expected
            seen += 1
    assert seen > 5


@pytest.mark.parametrize(
    ("head", "body", "language"),
    [
        ("def f(a=')', b=\"(\", c=1) -> 'x:y':", "\n    pass\n", "python"),
        ("def f(a=1,  # :-)\n      b=2) -> x:", "\n    pass\n", "python"),
        ('class A(B["("], metaclass=C):', "\n    x: int = 1\n", "python"),
        ("function f(a = '){', b = `(`)", " {\n}\n", "javascript"),
        ("int f(int a /* ) { */, // {\n  int b)", " {\n}\n", "c"),
        ("fn f<'a>(x: &'a str, y: &'a str) -> u8", " {\n    1\n}\n", "rust"),
        ('def f(a = ")", # (\n  b)', "\n  1\nend\n", "ruby"),
    ],
)
def test_strings_and_comments_of_a_head_open_and_close_nothing(
    head: str, body: str, language: str
) -> None:
    """Red when any of strings, comments and lifetimes is not told apart."""
    assert signature_of(head + body, language) == head


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("x = 1\n", "python"),
        ("# A heading: with a colon\n\ntext\n", "markdown"),
        ("anything {\n}\n", "text"),
        ("", "go"),
        ("def f(" + "a,\n" * 100 + "):\n    pass\n", "python"),
        ("def f(", "python"),
    ],
)
def test_what_has_no_head_or_a_long_one_has_no_signature(text: str, language: str) -> None:
    assert signature_of(text, language) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("first()" + "\n" * 400_000 + "second()", "javascript"),
        ("fn f() " + "'a \\" * 20_000, "rust"),
        ("f(" + "#" * 100_000, "go"),
        ("def f()\n" + "/*a" * 15_000, "python"),
    ],
    ids=["blank lines", "lifetimes", "hashes", "slashes"],
)
def test_a_long_text_costs_little(text: str, language: str) -> None:
    """Each took seconds when a line, or a sign, was read together with all before or behind it.

    The time is of this process alone.
    """
    started = time.process_time()

    signature_of(text, language)

    assert time.process_time() - started < 1.0
