"""What the text of a node is, and what leaves its hash alone."""

from __future__ import annotations

import itertools
import textwrap

import pytest

from services.io.model import NodeKind, ParsedFile, SkippedFile, SkipReason
from tests.unit.io.boundaries import check_file
from tests.unit.io.parsing import check_nodes, hashes_of, names_of, nodes_of, outcome_of, text_of

SOURCE = '''"""Doc."""
import os
import sys

LIMIT = 1

def first(a):
    """First."""
    return a

class A(Base):
    """A class."""

    field = 1

    def m(self, x=1):
        return self.field

    def n(self): return 2

VALUE = 2
'''


def test_a_class_is_its_signature_its_docstring_and_the_signatures_of_its_members() -> None:
    [node] = [n for n in nodes_of(SOURCE) if n.kind is NodeKind.CLASS]
    assert text_of(SOURCE, node) == (
        'class A(Base):\n"""A class."""\nfield = 1\ndef m(self, x=1):\ndef n(self):'
    )
    assert SOURCE.encode()[node.start : node.end].startswith(b"class A")


def test_a_body_that_changes_makes_one_new_content() -> None:
    edited = SOURCE.replace("return self.field", "return self.field + 1")
    assert len(hashes_of(edited) - hashes_of(SOURCE)) == 1


def test_a_signature_that_changes_makes_two_new_contents() -> None:
    edited = SOURCE.replace("def n(self)", "def n(self, y)")
    assert len(hashes_of(edited) - hashes_of(SOURCE)) == 2


@pytest.mark.parametrize(
    "anchor", ["import sys", "LIMIT = 1", "def first", "class A", "    def n", "VALUE", "    field"]
)
def test_a_comment_line_between_statements_changes_no_content(anchor: str) -> None:
    indentation = anchor[: len(anchor) - len(anchor.lstrip())]
    edited = SOURCE.replace(anchor, f"{indentation}# a comment\n{anchor}", 1)
    assert edited != SOURCE
    assert hashes_of(edited) == hashes_of(SOURCE)


def test_blank_lines_trailing_space_and_line_ends_change_no_content() -> None:
    edited = "\n\n" + SOURCE.replace("\n\n", "\n\n\n").replace("import os", "import os   ")
    assert hashes_of(edited) == hashes_of(SOURCE)
    assert hashes_of(SOURCE.replace("\n", "\r\n")) == hashes_of(SOURCE)


def test_a_function_moved_into_a_block_keeps_its_content() -> None:
    moved = SOURCE.replace(
        'def first(a):\n    """First."""\n    return a\n',
        'if sys:\n    def first(a):\n        """First."""\n        return a\n',
    )
    assert hashes_of(moved) == hashes_of(SOURCE)


def test_a_function_over_the_budget_is_split_and_its_parts_tile_it() -> None:
    body = "".join(f"    value_{i} = compute({i}, other={i})\n" for i in range(60))
    source = f"@dec\ndef long(a, b):\n{body}"
    parts = nodes_of(source, max_tokens=128)
    assert len(parts) > 3
    assert [p.part for p in parts] == list(range(len(parts)))
    assert {p.part_count for p in parts} == {len(parts)}
    assert parts[0].start == 0
    assert all(a.end == b.start for a, b in itertools.pairwise(parts))
    assert parts[-1].end >= len(source.rstrip())
    assert all(text_of(source, p).startswith("@dec\ndef long(a, b):") for p in parts)
    assert all(p.tokens <= 126 for p in parts)


def test_an_edit_early_in_a_long_function_leaves_its_late_parts_alone() -> None:
    body = "".join(f"    value_{i} = compute({i}, other={i * 7919})\n" for i in range(400))
    source = f"def long(a, b):\n{body}"
    edited = source.replace("    value_3 =", "    more = 1\n    again = 2\n    value_3 =")
    before, after = hashes_of(source), hashes_of(edited)
    assert len(before) > 20
    assert len(after - before) < len(before) / 4


_LONG = "".join(
    f"    if value_{i} > {i}:\n        first({i})\n        other({i})\n" for i in range(60)
)


@pytest.mark.parametrize(
    "other",
    [
        f"def f(a):\n{_LONG}".replace("\n", "\r\n"),
        f"def f(a):\n{_LONG}".replace("\n", "  \n"),
        "if a:\n" + textwrap.indent(f"def f(a):\n{_LONG}", "    "),
    ],
    ids=["line ends", "trailing space", "indented"],
)
def test_a_long_function_is_split_alike_whatever_space_is_in_it(other: str) -> None:
    """Red when what is between the lines of a statement tells where a part ends."""
    nodes = nodes_of(f"def f(a):\n{_LONG}", max_tokens=128)
    assert len(nodes) > 4
    assert {n.content_hash for n in nodes_of(other, max_tokens=128)} == {
        n.content_hash for n in nodes
    }


def test_compound_statements_are_split_inside() -> None:
    branch = "".join(f"            call_{i}(argument_{i})\n" for i in range(80))
    source = f"def f(a):\n    if a:\n        for b in a:\n{branch}"
    parts = nodes_of(source, max_tokens=128)
    assert len(parts) > 4
    check_nodes(source.encode(), parts)
    assert all(p.start == 0 or source[p.start - 1] == "\n" for p in parts), "parts are whole lines"


@pytest.mark.parametrize("name", ["a" * 300, "é" * 300])
def test_a_long_name_is_cut(name: str) -> None:
    assert set(names_of(f"def {name}():\n    pass\n")) == {("FUNCTION", name[:200])}


def test_a_long_field_of_a_class_is_a_node_of_its_own() -> None:
    table = "".join(f"        'key_{i}': {i},\n" for i in range(60))
    source = f"class A:\n    table = {{\n{table}    }}\n    def m(self): pass\n"
    assert names_of(source)[:2] == [("CLASS", "A"), ("BLOCK", "A.table")]
    outline = nodes_of(source)[0]
    assert text_of(source, outline) == "class A:\ntable = {\ndef m(self):"


def test_a_class_of_fields_alone_is_split_and_loses_nothing() -> None:
    fields = "".join(f"    name_{i}: int = {i}\n" for i in range(100))
    source = f"class A:\n{fields}"
    parts = nodes_of(source)
    assert len(parts) > 2
    assert {p.kind for p in parts} == {NodeKind.CLASS}
    joined = "\n".join(text_of(source, p) for p in parts)
    assert all(f"name_{i}: int" in joined for i in range(100))


def test_an_outline_over_the_budget_is_cut_at_a_whole_segment() -> None:
    methods = "".join(f"    def method_{i}(self, argument): pass\n" for i in range(100))
    node = nodes_of(f"class A:\n{methods}")[0]
    assert node.tokens <= 254
    assert text_of(f"class A:\n{methods}", node).endswith("(self, argument):")


_WORDS = "words of a comment on and on " * 80


@pytest.mark.parametrize(
    ("source", "language", "signature"),
    [
        (f"/** {_WORDS}*/\n@A class C extends D {{\n  int a;\n  void m() {{ }}\n}}\n", "java",
         "@A class C extends D"),
        (f"/// {_WORDS}\n#[a]\nimpl C {{\n  fn m(&self) {{ }}\n}}\n", "rust", "impl C"),
        (f"@a('{_WORDS}')\nexport class C {{\n  m() {{ }}\n}}\n", "typescript", "class C"),
        (f"class C(\n    {', '.join(f'Base{i}' for i in range(200))}\n):\n    def m(self): pass\n",
         "python", "class C("),
        (f"/** {_WORDS}*/\nconst api = {{ get() {{ }} }};\n", "javascript", "const api ="),
        ("struct C { void m() { } } all[] = {" + "{ 1 }, " * 200 + "};\n", "cpp", "struct C"),
    ],
    ids=["comment", "attribute", "decorator", "bases", "object", "table"],
)  # fmt: skip
def test_a_class_opens_with_its_signature_and_is_no_longer_than_the_model_reads(
    source: str, language: str, signature: str
) -> None:
    """Red when a long comment fills the text of its class: the model read none of the class."""
    outcome = outcome_of(source, language)
    assert isinstance(outcome, ParsedFile)
    check_file(source.encode(), outcome)
    classes = [node for node in outcome.nodes if node.kind is NodeKind.CLASS]
    assert [text_of(source, node).splitlines()[0] for node in classes] == [signature]
    assert all(node.tokens <= 254 for node in outcome.nodes)
    assert all(node.parent == 1 for node in outcome.nodes[1:])
    texts = " ".join(text_of(source, node) for node in outcome.nodes)
    assert texts.count("words of a comment") == source.count("words of a comment")


@pytest.mark.parametrize("source", ["", "\n \n", "﻿", "# only a comment\n"])
def test_a_file_without_statements_has_no_nodes(source: str) -> None:
    outcome = outcome_of(source)
    assert isinstance(outcome, ParsedFile)
    assert outcome.nodes == ()


_DECORATED = """class A {
  /** Doc. */
  @logged
  // why
%s  @cached()
  @retried(3) run(): void { }
}
"""
_ATTRIBUTED = """/// Doc.
#[derive(Debug)]
// why
%s#[serde(default)]
struct S { a: u8 }
"""


@pytest.mark.parametrize("gap", ["", "\n", "\n  // and why\n\n"])
@pytest.mark.parametrize(
    ("source", "language", "kind", "start"),
    [
        (_DECORATED, "typescript", NodeKind.METHOD, b"/** Doc. */\n  @logged"),
        (_DECORATED.replace(": void", ""), "javascript", NodeKind.METHOD, b"/** Doc. */\n  @log"),
        (_ATTRIBUTED, "rust", NodeKind.CLASS, b"/// Doc.\n#[derive"),
    ],
    ids=["typescript", "javascript", "rust"],
)
def test_attributes_belong_to_their_declaration_whatever_stands_between_them(
    source: str, language: str, kind: NodeKind, start: bytes, gap: str
) -> None:
    """Red when a comment or a blank line between them leaves the first in no node."""
    source %= gap
    nodes = [node for node in nodes_of(source, language) if node.kind is kind]
    assert len(nodes) == 1
    assert source.encode()[nodes[0].start :].startswith(start)


def test_an_attribute_that_stands_before_nothing_is_in_a_node() -> None:
    source = "class A {\n  a() { }\n  b() { }\n  @lost\n}\n"
    assert any("@lost" in text_of(source, node) for node in nodes_of(source, "typescript"))


def test_a_byte_order_mark_is_no_error() -> None:
    assert names_of("﻿def f():\n    pass\n")[-1] == ("FUNCTION", "f")


def test_few_errors_keep_the_nodes_and_are_told() -> None:
    outcome = outcome_of("def f():\n    return 1\n\ndef g(:\n    pass\n\ndef h():\n    return 2\n")
    assert isinstance(outcome, ParsedFile)
    assert outcome.has_syntax_errors
    assert outcome.language == "python"
    assert {"f", "h"} <= {node.name for node in outcome.nodes}


def test_a_file_that_does_not_parse_is_cut_into_windows() -> None:
    outcome = outcome_of("<<< )) %% $ ??? {{{ \n" * 30)
    assert isinstance(outcome, ParsedFile)
    assert outcome.has_syntax_errors
    assert {node.kind for node in outcome.nodes} == {NodeKind.WINDOW}
    assert outcome.language == "text"


@pytest.mark.parametrize(
    "source",
    [
        "(" * 100_000,
        "x = " + "[" * 50_000 + "]" * 50_000 + "\n",
        "x = '" + "a " * 200_000 + "'",
        "if a:\n" + "".join(" " * i + "if a:\n" for i in range(1, 300)) + " " * 300 + "pass\n",
        "class A:\n" + "".join(" " * i + "class A:\n" for i in range(1, 90)) + " " * 90 + "x=1\n",
        "\u2028\x85\x0c" * 1000,
        "x = 'é🎉中文'\n" * 500,
        "a\rb\rc\r" * 2000,
    ],
    ids=["open", "nested", "line", "ifs", "classes", "spaces", "wide", "returns"],
)
def test_poison_ends_as_an_outcome_with_sound_nodes(source: str) -> None:
    outcome = outcome_of(source)
    assert isinstance(outcome, ParsedFile)
    check_nodes(source.encode(), list(outcome.nodes))


@pytest.mark.slow
def test_too_many_tiny_functions_are_cut_into_windows() -> None:
    outcome = outcome_of("def f():0\n" * 100_000, max_nodes=5000)
    assert isinstance(outcome, ParsedFile)
    assert {node.kind for node in outcome.nodes} == {NodeKind.WINDOW}


def test_a_file_with_more_windows_than_the_limit_is_too_large() -> None:
    outcome = outcome_of("{ ( [ ; ] ) }\n" * 1000, "text", max_nodes=10)
    assert isinstance(outcome, SkippedFile)
    assert outcome.reason is SkipReason.TOO_LARGE


def test_markdown_is_cut_at_headings_outside_of_fences() -> None:
    source = (
        "intro\n\n# One\ntext\n\n```sh\n# no heading\n```\n\nTwo\n===\nmore\n\n### Three ###\nend\n"
    )
    nodes = nodes_of(source, "markdown")
    assert [(n.name, n.start_line) for n in nodes] == [
        ("", 1), ("One", 3), ("Two", 10), ("Two > Three", 14),
    ]  # fmt: skip
    assert "# no heading" in text_of(source, nodes[1])
    check_nodes(source.encode(), nodes)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("---\ntitle: Guide\nweight: 1\n---\nIntro.\n\n# One\n", ["", "One"]),
        ("\ufeff---\r\ntitle: Guide\r\n---\r\n# One\r\n", ["", "One"]),
        ("\ufeff# One\ntext\n## Two\n", ["One", "One > Two"]),
        ("+++\ntitle = 1\n# of the data\n+++\n# One\n", ["", "One"]),
        ("---\n\n# One\n\ntext\n\n---\n", ["", "One"]),
        ("# One\n\n***\nTwo\n---\n", ["One", "One > Two"]),
        ("# One\n\n- - -\nTwo\n===\n", ["One", "Two"]),
        ("# One\n<!--\n# none\n-->\n## Two\n<!-- # none -->\n", ["One", "One > Two"]),
        ("# One\n```html\n<!--\n```\n## Two\n", ["One", "One > Two"]),
    ],
    ids=[
        "front matter",
        "with a mark",
        "mark",
        "toml",
        "break",
        "stars",
        "spaced",
        "comment",
        "fence",
    ],
)
def test_headings_are_none_of_front_matter_breaks_and_comments(
    source: str, names: list[str]
) -> None:
    """Red when the data at the start of a document, or a line across it, is taken for a title."""
    nodes = nodes_of(source, "markdown")
    check_nodes(source.encode(), nodes)
    assert [node.name for node in nodes] == names


def test_a_long_section_is_split_between_paragraphs() -> None:
    source = "# Title\n\n" + "\n\n".join(f"Paragraph {i} " + "word " * 40 for i in range(20))
    parts = nodes_of(source, "markdown")
    assert len(parts) > 3
    assert {p.name for p in parts} == {"Title"}
    assert all(text_of(source, p).startswith("# Title") for p in parts)


def test_windows_overlap_and_cover_every_line() -> None:
    source = "".join(f"line number {i} of this file\n" for i in range(300))
    windows = nodes_of(source, "text")
    covered = {line for w in windows for line in range(w.start_line, w.end_line + 1)}
    assert covered == set(range(1, 301))
    assert all(b.start_line <= a.end_line for a, b in itertools.pairwise(windows))
    assert all(w.tokens <= 254 for w in windows)


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        (
            "document.addEventListener('keydown', function (event) {\n  function go() { }\n});\n",
            ["document.addEventListener('keydown', function (event)", "function go() { }"],
        ),
        (
            "(function (win) {\n  function go() { }\n})(window, jQuery);\n",
            ["(function (win)", "function go() { }", ")(window, jQuery);"],
        ),
        ("(function () {\n  function go() { }\n})();\n", ["function go() { }"]),
    ],
    ids=["event", "module", "bare"],
)
def test_what_stands_around_a_function_full_of_declarations_is_in_a_node(
    source: str, texts: list[str]
) -> None:
    """Red when of a call that takes such a function only what is in the function is told."""
    assert [text_of(source, node) for node in nodes_of(source, "javascript")] == texts


def test_what_stands_around_a_function_full_of_declarations_is_referred_to() -> None:
    source = "describe('cookies', () => {\n  function make() { }\n});\n"
    outcome = outcome_of(source, "javascript")
    assert isinstance(outcome, ParsedFile)
    assert [(item.node, item.name) for item in outcome.references] == [(1, "describe")]
