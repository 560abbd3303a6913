"""Which nodes each language has."""

from __future__ import annotations

import pytest

from services.io.parser.languages import LANGUAGES, language_by_name
from tests.unit.io.parsing import GRAMMARS, names_of, nodes_of, text_of

SNIPPETS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "python": (
        ('"""Doc."""\nimport a\n\n@dec\nasync def f(x):\n    def inner(): ...\n    return 1\n\n'
        "class A(B):\n    x: int = 1\n    @property\n    def m(self): return 1\n"
        "    class In:\n        def n(self): pass\n\nif T:\n    def g(): pass\nTABLE = {}\n"),
        [("MODULE", ""), ("FUNCTION", "f"), ("CLASS", "A"), ("METHOD", "A.m"), ("CLASS", "A.In"),
         ("METHOD", "A.In.n"), ("FUNCTION", "g"), ("BLOCK", "TABLE")],
    ),
    "javascript": (
        ("import x from 'y';\nexport default function () { }\nconst f = async (a) => { };\n"
        "class C extends D { #p = 1; m() { } arrow = () => { }; }\n"
        "const api = { get() { }, post: () => { }, x: 1 };\nmodule.exports.foo = function () { };\n"
        "const K = memo(() => { });\n(function () { function hidden() { } })();\n"),
        [("MODULE", ""), ("FUNCTION", "default"), ("FUNCTION", "f"), ("CLASS", "C"),
         ("METHOD", "C.m"), ("METHOD", "C.arrow"), ("CLASS", "api"), ("METHOD", "api.get"),
         ("METHOD", "api.post"), ("METHOD", "module.exports.foo"), ("FUNCTION", "K"),
         ("FUNCTION", "hidden")],
    ),
    "typescript": (
        ("import x from 'y';\nexport abstract class C<T> { private f = 1;"
        " @Dec() m(a: number) { } }\ninterface I { a: number }\ntype X = { a: number };\n"
        "enum En { A }\n"
        "namespace N { export function z() { } }\nexport const f = (a: T): U => { };\n"),
        [("MODULE", ""), ("CLASS", "C"), ("METHOD", "C.m"), ("CLASS", "I"), ("CLASS", "X"),
         ("CLASS", "En"), ("FUNCTION", "N.z"), ("FUNCTION", "f")],
    ),
    "tsx": (
        ("import React from 'react';\nexport const App = () => <div>{1}</div>;\n"
        "function Other(p: P) { return <p/>; }\n"),
        [("MODULE", ""), ("FUNCTION", "App"), ("FUNCTION", "Other")],
    ),
    "go": (
        ('package p\n\nimport "x"\n\n// T is a thing.\ntype T struct {\n\tA int\n}\n\n'
        "type (\n\tI interface{ Q() }\n\tJ = int\n)\n\nfunc (t *T[K]) M(a int) int { return 1 }\n\n"
        "// Top does.\nfunc Top() {}\n\nvar x = 1\n"),
        [("MODULE", ""), ("CLASS", "T"), ("CLASS", "I"), ("CLASS", "J"), ("METHOD", "T.M"),
         ("FUNCTION", "Top"), ("BLOCK", "x")],
    ),
    "rust": (
        ("//! Crate.\nuse x::y;\n/// Doc.\n#[derive(Debug)]\npub struct S<T> { a: T }\n"
        "impl<T> Tr for S<T> { const A: i32 = 1; fn m(&self) -> i32 { 1 } }\n"
        "trait Tr { fn req(&self); fn def(&self) {} }\nenum E { A }\n"
        "mod tests { fn t() {} }\nmacro_rules! mm { () => {} }\nfn top() {}\nstatic X: i32 = 1;\n"),
        [("MODULE", ""), ("CLASS", "S"), ("CLASS", "S"), ("METHOD", "S.m"), ("CLASS", "Tr"),
         ("METHOD", "Tr.def"), ("CLASS", "E"), ("FUNCTION", "tests.t"), ("FUNCTION", "mm"),
         ("FUNCTION", "top"), ("BLOCK", "X")],
    ),
    "java": (
        ("package a.b;\nimport x.y;\n/** Doc. */\n@A public class C<T> extends D {\n"
        "  private int f = 1;\n  C() { }\n  @Override public int m(int a) { return 1; }\n"
        "  enum E { A, B; void t() {} }\n}\ninterface I { void q(); }\n"
        "record R(int a) { R { } }\n"),
        [("MODULE", ""), ("CLASS", "C"), ("METHOD", "C.C"), ("METHOD", "C.m"), ("CLASS", "C.E"),
         ("METHOD", "C.E.t"), ("CLASS", "I"), ("CLASS", "R"), ("METHOD", "R.R")],
    ),
    "c": (
        ("#ifndef H\n#define H\n#include <x.h>\nstruct S { int a; };\n"
        "typedef struct { int b; } TS;\n"
        "static int *top(int a) { return 0; }\nint x = 1;\n#endif\n"),
        [("MODULE", ""), ("CLASS", "S"), ("CLASS", "TS"), ("FUNCTION", "top"), ("BLOCK", "x")],
    ),
    "cpp": (
        ("#include <x>\nnamespace n {\n/** Doc. */\ntemplate <typename T> class C : public D {\n"
        " public:\n  int f;\n  C() : f(1) {}\n  virtual int m(int a) const { return 1; }\n};\n"
        'enum class E { A };\n}\nint n::C::b() { return 1; }\n'
        'extern "C" { int cc(void) { return 1; } }\n'),
        [("MODULE", ""), ("CLASS", "n.C"), ("METHOD", "n.C.C"), ("METHOD", "n.C.m"),
         ("CLASS", "n.E"), ("METHOD", "n.C.b"), ("FUNCTION", "cc")],
    ),
    "c-sharp": (
        ("using System;\nnamespace A {\n/// <summary>Doc.</summary>\n[Attr] public class C : D {\n"
        "  int f = 1; public int P { get; set; }\n  public C() {}\n  public int M(int a) => a;\n"
        "  enum X { A }\n}\ninterface I { void Q(); }\nrecord R(int a);\n}\n"),
        [("MODULE", ""), ("CLASS", "A.C"), ("METHOD", "A.C.C"), ("METHOD", "A.C.M"),
         ("CLASS", "A.C.X"), ("CLASS", "A.I"), ("CLASS", "A.R")],
    ),
    "ruby": (
        ("require 'x'\nmodule M\n  X = 1\n  class C < D\n    attr_reader :a\n    def n\n"
        "      1\n    end\n"
        "    class << self\n      def s = 1\n    end\n    def self.t\n      2\n    end\n"
        "    private def u\n      3\n    end\n  end\nend\ndef top\n  1\nend\n"),
        [("MODULE", ""), ("CLASS", "M"), ("CLASS", "M.C"), ("METHOD", "M.C.n"),
         ("METHOD", "M.C.s"), ("METHOD", "M.C.t"), ("METHOD", "M.C.u"), ("FUNCTION", "top")],
    ),
    "php": (
        ("<?php\nnamespace A\\B;\nuse X\\Y;\n/** Doc. */\nfinal class C extends D {\n"
        "  const Q = 1;\n  public function m(int $a): int { return 1; }\n}\n"
        "interface I { function q(); }\ntrait T { function z() {} }\nfunction top() { }\n"),
        [("MODULE", ""), ("CLASS", "C"), ("METHOD", "C.m"), ("CLASS", "I"), ("CLASS", "T"),
         ("METHOD", "T.z"), ("FUNCTION", "top")],
    ),
    "bash": (
        "#!/bin/bash\nX=1\nfoo() {\n  echo\n}\nfunction bar { echo; }\nfoo\n",
        [("MODULE", ""), ("FUNCTION", "foo"), ("FUNCTION", "bar"), ("BLOCK", "foo")],
    ),
    "kotlin": (
        ("package a.b\nimport x.y\n/** Doc. */\nclass Foo(val a: Int) : Bar() {\n  val q = 1\n"
        "  companion object {\n    fun z() = 1\n  }\n  fun m(a: Int): Int { return 1 }\n}\n"
        "object O {\n  fun p() {}\n}\nfun top() = 3\nval v = 3\n"),
        [("MODULE", ""), ("CLASS", "Foo"), ("CLASS", "Foo.Companion"),
         ("METHOD", "Foo.Companion.z"), ("METHOD", "Foo.m"), ("CLASS", "O"), ("METHOD", "O.p"),
         ("FUNCTION", "top"), ("BLOCK", "")],
    ),
    "scala": (
        ("package a.b\nimport x.y\n/** Doc. */\nclass A(x: Int) extends B {\n  val q = 1\n"
        "  def m(a: Int): Int = { a + 1 }\n}\nobject O { def p() = 1 }\ntrait T { def abs: Int }\n"
        "def top = 1\n"),
        [("MODULE", ""), ("CLASS", "A"), ("METHOD", "A.m"), ("CLASS", "O"), ("METHOD", "O.p"),
         ("CLASS", "T"), ("FUNCTION", "top")],
    ),
    "swift": (
        ("import Foo\n/// Doc.\npublic class A: B {\n  var x = 1\n  init(a: Int) { }\n"
        "  func m() -> Int { return 1 }\n}\nextension A { func more() {} }\n"
        "protocol P { func req() }\nfunc top() {}\n"),
        [("MODULE", ""), ("CLASS", "A"), ("METHOD", "A.init"), ("METHOD", "A.m"), ("CLASS", "A"),
         ("METHOD", "A.more"), ("CLASS", "P"), ("FUNCTION", "top")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("language", SNIPPETS)
def test_declarations_are_nodes_with_their_names(language: str) -> None:
    source, expected = SNIPPETS[language]
    assert names_of(source, language) == expected
    assert not GRAMMARS.parser(language).parse(source.encode()).root_node.has_error


def test_every_language_has_a_snippet_and_suffixes_of_its_own() -> None:
    assert set(SNIPPETS) == {rules.name for rules in LANGUAGES}
    suffixes = [suffix for rules in LANGUAGES for suffix in rules.suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert [rules.name for rules in LANGUAGES] == sorted(SNIPPETS)


@pytest.mark.parametrize("language", ["java", "cpp", "kotlin", "rust", "swift", "c-sharp", "php"])
def test_a_doc_comment_belongs_to_the_declaration_below_it(language: str) -> None:
    source, _ = SNIPPETS[language]
    documented = next(n for n in nodes_of(source, language) if n.kind.name == "CLASS")
    assert text_of(source, documented).startswith("/")


def test_a_go_comment_belongs_to_a_declaration_when_it_begins_with_its_name() -> None:
    source = "package p\n\n// Other words.\nfunc F() {}\n\n// G does.\n// More.\nfunc G() {}\n"
    texts = [text_of(source, node) for node in nodes_of(source, "go")]
    assert texts == ["package p", "func F() {}", "// G does.\n// More.\nfunc G() {}"]


@pytest.mark.parametrize(
    ("name", "language"),
    [("a.py", "python"), ("A.PY", "python"), ("x.d.ts", "typescript"), ("a.h", "cpp"),
     ("README.md", "markdown"), ("Gemfile", "ruby"), ("x.html", "text"), ("Makefile", "text"),
     (".bashrc", "bash"), ("py", "text")],
)  # fmt: skip
def test_a_language_is_told_by_name(name: str, language: str) -> None:
    assert language_by_name(name) == language


def test_a_typedef_with_a_struct_inside_says_its_own_name() -> None:
    """Red when a class's text ends with its members: the name stands behind the body."""
    source = "typedef struct {\n  struct Inner { int first; } inner;\n  int second;\n} Outermost;\n"

    nodes = nodes_of(source, "c")

    assert any("Outermost" in text_of(source, node) for node in nodes), nodes


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("template <class T> void Stack<T>::push(T item) { }", "METHOD", "Stack.push"),
        ("V& Map<K, std::vector<V>>::at(K key) { }", "METHOD", "Map.at"),
        ("bool Key::operator<(const Key& other) const { }", "METHOD", "Key.operator<"),
        ("int Call::operator()(int a) { }", "METHOD", "Call.operator()"),
        ("T& Row<T>::operator[](int at) { }", "METHOD", "Row.operator[]"),
        ("Flag::operator bool() const { }", "METHOD", "Flag.operator bool"),
        ("std::ostream& operator <<(std::ostream& out, Key key) { }", "FUNCTION", "operator<<"),
        ("class A { operator bool() const { } };", "METHOD", "A.operator bool"),
        ("void OUTER::\nINNER ::go() { }", "METHOD", "OUTER.INNER.go"),
        ("class A { friend bool operator==(A a, A b) { } };", "METHOD", "A.operator=="),
        ("class A { struct Inner { void go() { } } inner; };", "METHOD", "A.Inner.go"),
        ("class A { enum Kind { FIRST }; };", "CLASS", "A.Kind"),
        ("static struct table { int size; } first = { 1 };", "CLASS", "table"),
    ],
)
def test_a_name_of_c_plus_plus_is_that_of_its_place(source: str, kind: str, name: str) -> None:
    """Red when a template's arguments or an operator's sign end the name, or a member is a field.

    All four stood in real files: most members of templates had the name of their class.
    """
    assert names_of(source, "cpp")[-1] == (kind, name)


def test_a_struct_that_defines_a_variable_as_well_is_a_class() -> None:
    source = "struct point { int x; } origin = { 0 };\nstruct { int y; } nameless;\n"
    assert names_of(source, "c") == [("CLASS", "point"), ("BLOCK", "nameless")]


FORMS: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "empty methods of ruby": (
        "ruby",
        "class A\n  def ready?; end\n  def after\n  end\nend\n",
        [("CLASS", "A"), ("METHOD", "A.ready?"), ("METHOD", "A.after")],
    ),
    "blocks of ruby": (
        "ruby",
        ("module A\n  class_methods do\n    def find; 1; end\n  end\n  if B\n    def old; 1; end\n"
         "  end\n  C = Struct.new(:x) do\n    def y; 1; end\n  end\nend\n"),
        [("CLASS", "A"), ("METHOD", "A.find"), ("METHOD", "A.old"), ("CLASS", "A.C"),
         ("METHOD", "A.C.y")],
    ),
    "suites of ruby": (
        "ruby",
        "describe A do\n  def help; 1; end\n  it('is') { help }\nend\n",
        [("MODULE", ""), ("FUNCTION", "help"), ("BLOCK", "")],
    ),
    "functions of php that may exist": (
        "php",
        ("<?php\nif (!function_exists('a')) {\n  function a() { }\n} else {\n"
         "  function b() { }\n}\nif ($c) { d(); }\n"),
        [("FUNCTION", "a"), ("FUNCTION", "b"), ("BLOCK", "")],
    ),
    "functions of bash that may exist": (
        "bash",
        "if x; then\n  a() { b; }\nelse\n  c() { d; }\nfi\n",
        [("FUNCTION", "a"), ("FUNCTION", "c")],
    ),
    "operators of c-sharp": (
        "c-sharp",
        ("class A { ~A() { } public static A operator +(A a, A b) => a;"
         " public static implicit operator int(A a) => 1; }\n"),
        [("CLASS", "A"), ("METHOD", "A.~A"), ("METHOD", "A.operator+"),
         ("METHOD", "A.operator int")],
    ),
    "a class without name of javascript": (
        "javascript",
        "export default class extends A {\n  b() { }\n}\n",
        [("CLASS", "default"), ("METHOD", "default.b")],
    ),
    "a name over lines of javascript": (
        "javascript",
        "shop.cart\n  .add = function () { };\n",
        [("METHOD", "shop.cart.add")],
    ),
    "what typescript declares globally": (
        "typescript",
        "declare global {\n  interface Window { a: number }\n}\n",
        [("CLASS", "Window")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_declarations(form: str) -> None:
    """Red when what is declared in a block or a condition, or by a sign, has no node or name."""
    language, source, expected = FORMS[form]
    assert not GRAMMARS.parser(language).parse(source.encode()).root_node.has_error
    assert names_of(source, language) == expected
