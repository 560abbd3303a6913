"""What files refer to: calls, bases and imports, by name, with the node that they stand in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.io.content import PARSER, RECIPE
from services.io.model import ParsedFile
from services.io.parser.languages import LANGUAGES
from services.io.parser.reference_rules import REFERENCE_RULES
from services.io.parser.references import MAX_PER_FILE, MAX_PER_NODE
from tests.unit.io.parsing import outcome_of

if TYPE_CHECKING:
    from services.io.model import Reference

_SHORT = {"CALL": "calls", "INHERIT": "is a", "IMPORT": "imports"}


def _file_of(source: str, language: str, max_tokens: int = 256) -> ParsedFile:
    outcome = outcome_of(source, language, max_tokens)
    assert isinstance(outcome, ParsedFile)
    return outcome


def _told(source: str, language: str) -> set[str]:
    """Returns what a file refers to in lines such as `C.m calls self.n`."""
    file = _file_of(source, language)
    return {_line(file, reference) for reference in file.references}


def _line(file: ParsedFile, reference: Reference) -> str:
    owner = file.nodes[reference.node - 1].name or "-"
    kind = _SHORT[reference.kind.name]
    if kind == "imports":
        alias = f" as {reference.alias}" if reference.alias else ""
        return f"imports {reference.qualifier} : {reference.name}{alias}"
    qualified = ".".join(filter(None, (reference.qualifier, reference.name)))
    return f"{owner} {kind} {qualified}"


SOURCES: dict[str, tuple[str, set[str]]] = {
    "python": (
        ("import os.path\nimport numpy as np\nfrom a.b import c, d as e\nfrom . import f\n"
        "from ..g import *\n\n\n@deco\nclass C(Base, m.Other, Gen[int], metaclass=Meta):\n"
        "    def n(self):\n        super().n()\n        self.k(np.zeros(1))\n        f()(2)\n"),
        {"imports os/path : ", "imports numpy :  as np", "imports a/b : c",
         "imports a/b : d as e", "imports . : f", "imports ../g : *", "C calls deco",
         "C is a Base", "C is a m.Other", "C is a Gen", "C.n calls super.n", "C.n calls self.k",
         "C.n calls super", "C.n calls np.zeros", "C.n calls f"},
    ),
    "javascript": (
        ("import D, {x as y, z} from './m';\nimport * as ns from 'lib/q';\n"
        "const {a} = require('../r');\nexport * from './s';\nexport {t as u} from './v';\n"
        "class A extends B { m() { this.n(); super.m(); new Q(1); } }\n"
        "class E extends d.F {}\nconst g = () => h(1);\n"),
        {"imports ./m :  as D", "imports ./m : x as y", "imports ./m : z",
         "imports lib/q :  as ns", "imports ../r : a", "imports ./s : *", "imports ./v : t as u",
         "A is a B", "E is a d.F", "A.m calls this.n", "A.m calls super.m", "A.m calls Q",
         "g calls h"},
    ),
    "typescript": (
        ("import type { T } from './t';\nimport { U } from './u';\n"
        "interface I extends J, K<U> {}\nclass A extends B<T> implements I, ns.L {\n"
        "  m(): void { f<T>(1); this.x.y(); }\n}\n"),
        {"imports ./t : T", "imports ./u : U", "I is a J", "I is a K", "A is a B", "A is a I",
         "A is a ns.L", "A.m calls f", "A.m calls this.x.y"},
    ),
    "go": (
        ('package p\n\nimport (\n\t"fmt"\n\tq "ex.com/m/queue"\n)\n\n'
        "type S struct {\n\tBase\n\t*Other\n\tq.Third\n\tn int\n}\n\n"
        "type I interface {\n\tJ\n\tM()\n}\n\n"
        'func (s *S) M() {\n\tfmt.Println("x")\n\ts.n()\n\tfree()\n}\n'),
        {"imports fmt : ", "imports ex.com/m/queue :  as q", "S is a Base", "S is a Other",
         "S is a q.Third", "I is a J", "S.M calls fmt.Println", "S.M calls s.n",
         "S.M calls free"},
    ),
    "rust": (
        ("use crate::a::b;\nuse std::fmt as f;\nuse super::{x, y::z, w as v};\nuse q::*;\n"
        "struct S;\nimpl Tr for S {\n  fn m(&self) { self.n(); free(1); T::new(); b::c::d();\n"
        "    make::<u8>(); log!(1); }\n}\ntrait U: Tr {}\n"),
        {"imports a : b", "imports std : fmt as f", "imports . : x", "imports ./y : z",
         "imports . : w as v", "imports q : *", "S is a Tr", "U is a Tr", "S.m calls self.n",
         "S.m calls free", "S.m calls T.new", "S.m calls b.c.d", "S.m calls make",
         "S.m calls log"},
    ),
    "java": (
        ("package a;\nimport b.c.D;\nimport static b.E.f;\nimport g.*;\n"
        "class C extends B<T> implements I, J {\n  void m() { n(); this.o(); D.p();"
        " new Q<R>(1); }\n"
        "}\ninterface K extends I {}\n"),
        {"imports b/c : D", "imports b/E : f", "imports g : *", "C is a B", "C is a I",
         "C is a J", "K is a I", "C.m calls n", "C.m calls this.o", "C.m calls D.p",
         "C.m calls Q"},
    ),
    "ruby": (
        ("require 'json'\nrequire_relative '../lib/x'\nclass C < A::B\n  include M\n"
        "  def m\n    n(1)\n    self.o\n    D.new(2)\n  end\nend\n"),
        {"imports json : ", "imports ../lib/x : ", "C is a A.B", "C is a M", "C.m calls n",
         "C.m calls self.o", "C.m calls D.new"},
    ),
    "c": (
        ('#include <stdio.h>\n#include "lib/x.h"\nint top(struct s *p) {\n'
        "  f(1);\n  p->cb(2);\n  return 0;\n}\n"),
        {"imports stdio.h : ", "imports lib/x.h : ", "top calls f", "top calls p.cb"},
    ),
    "cpp": (
        ('#include "y.hpp"\nclass C : public B, private n::D<int> {\n public:\n'
        "  void m() { f(); this->g(); n::h(); a.b::k(); make<int>(); new Q(1); }\n};\n"),
        {"imports y.hpp : ", "C is a B", "C is a n.D", "C.m calls f", "C.m calls this.g",
         "C.m calls n.h", "C.m calls make", "C.m calls Q"},
    ),
    "c-sharp": (
        ("using A.B;\nclass K : Base, I<int> {\n  void M() { Foo(); this.Bar(); a.B.Baz<int>();"
        " new Q(1); }\n}\n"),
        {"imports A/B : ", "K is a Base", "K is a I", "K.M calls Foo", "K.M calls this.Bar",
         "K.M calls a.B.Baz", "K.M calls Q"},
    ),
    "php": (
        ("<?php\nuse A\\B\\C;\nuse A\\D as E;\nclass K extends Base implements I {\n  use T;\n"
        "  function m() { foo(); $this->bar(); K::baz(); new Q(1); }\n}\n"),
        {"imports A/B : C", "imports A : D as E", "K is a Base", "K is a I", "K is a T",
         "K.m calls foo", "K.m calls this.bar", "K.m calls K.baz", "K.m calls Q"},
    ),
    "kotlin": (
        ("import a.b.C\nimport a.e.F as G\nclass X(y: Int) : Base(), I<T> {\n"
        "  fun m() { foo(1); this.bar(2); a.b.baz() }\n}\n"),
        {"imports a/b : C", "imports a/e : F as G", "X is a Base", "X is a I", "X.m calls foo",
         "X.m calls this.bar", "X.m calls a.b.baz"},
    ),
    "scala": (
        ("import a.b.C\nimport a.b.{D, E => F}\nimport a.c._\n"
        "class X extends Base(1) with T { def m = { foo(1); a.bar(2); new Y(3) } }\n"),
        {"imports a/b : C", "imports a/b : D", "imports a/b : E as F", "imports a/c : *",
         "X is a Base", "X is a T", "X.m calls foo", "X.m calls a.bar", "X.m calls Y"},
    ),
    "swift": (
        "import Foundation\nclass X: Base, P {\n  func m() { foo(1); self.bar(2); a.b.baz() }\n}\n",
        {"imports Foundation : ", "X is a Base", "X is a P", "X.m calls foo", "X.m calls self.bar",
         "X.m calls a.b.baz"},
    ),
    "bash": (
        "source lib/x.sh\n. ./y.sh\nf() { g 1; }\n",
        {"imports lib/x.sh : ", "imports ./y.sh : ", "f calls g"},
    ),
}  # fmt: skip


FORMS: dict[str, tuple[str, str, set[str]]] = {
    "lists in lists of rust": (
        "rust",
        "use std::{fmt, io::{self, Read as R}, sync::{atomic::AtomicU8}};\nuse ::a::b;\n",
        {"imports std : fmt", "imports std : io", "imports std/io : Read as R",
         "imports std/sync/atomic : AtomicU8", "imports a : b"},
    ),
    "groups of php": (
        "php",
        "<?php\nuse A\\B\\{C, D as E, function l};\nuse F\\G, H as I;\nuse function J\\k;\n",
        {"imports A/B : C", "imports A/B : D as E", "imports F : G", "imports  : H as I",
         "imports J : k", "imports A/B : l"},
    ),
    "aliases of c-sharp": (
        "c-sharp",
        "using System.IO;\nusing static A.B;\nusing C = D.E<int>;\nusing F = G;\n",
        {"imports System/IO : ", "imports A/B : ", "imports D : E as C", "imports G :  as F"},
    ),
    "types of typescript": (
        "typescript",
        "import { type T, type U as V, type } from './t';\nexport { type W } from './w';\n",
        {"imports ./t : T", "imports ./t : U as V", "imports ./t : type", "imports ./w : W"},
    ),
    "aliases of scala": ("scala", "import a.b as c\n", {"imports a : b as c"}),
    "calls of c++ by path": (
        "cpp",
        ("void f() { a::b::c::d(); std::make_shared<T>(); Map<K, V>::of(); ::g(); h<int>(); }\n"),
        {"f calls a.b.c.d", "f calls std.make_shared", "f calls Map.of", "f calls g", "f calls h"},
    ),
    "generic calls of go": (
        "go",
        "package p\n\nfunc f() {\n\tg[int](1, 2)\n\th.i[string]()\n}\n",
        {"f calls g", "f calls h.i"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_calls_and_imports(form: str) -> None:
    """Red when a list's own module, or a path beyond its second part, is lost."""
    language, source, expected = FORMS[form]

    assert _told(source, language) == expected


@pytest.mark.parametrize("language", SOURCES)
def test_calls_bases_and_imports_of_a_language(language: str) -> None:
    source, expected = SOURCES[language]

    found = _told(source, language)

    assert expected - found == set()
    unexpected = found - expected
    assert not {line for line in unexpected if " is a " in line or "imports" in line}, unexpected


def test_each_language_with_a_grammar_has_rules() -> None:
    assert set(REFERENCE_RULES) == {rules.name for rules in LANGUAGES}
    assert {*SOURCES, "tsx"} == set(REFERENCE_RULES)


def test_the_parser_has_a_version_of_its_own_that_is_not_in_the_hash() -> None:
    """A new parser has files parsed again; only a new recipe has texts embedded again."""
    assert PARSER.startswith(f"{RECIPE}.")


def test_what_a_split_function_calls_belongs_to_its_first_part() -> None:
    body = "".join(f"    call_{i}(1, 2, 3)\n" for i in range(60))
    source = f"def f():\n{body}\ndef g():\n{body}"

    file = _file_of(source, "python", max_tokens=64)

    first, second = (index for index, node in enumerate(file.nodes, 1) if not node.part)
    assert second - first > 1
    names = [f"call_{i}" for i in range(60)]
    assert sorted((reference.node, reference.name) for reference in file.references) == sorted(
        (node, name) for node in (first, second) for name in names
    )


def test_a_text_that_is_too_long_for_a_name_is_none() -> None:
    name, receiver = "n" * 201, "r" * 201

    file = _file_of(f"def f():\n    {name}()\n    {receiver}.g()\n", "python")

    assert [(item.name, item.qualifier) for item in file.references] == [("g", "?")]


def test_a_name_that_is_called_often_is_told_once_with_its_first_line() -> None:
    file = _file_of("def f():\n    pass\n    g()\n    g()\n", "python")

    assert [(item.name, item.line) for item in file.references] == [("g", 3)]


def test_an_import_inside_a_function_belongs_to_the_function() -> None:
    file = _file_of("import a\n\n\ndef f():\n    from b import c\n    c()\n", "python")

    assert [(file.nodes[item.node - 1].name, item.qualifier) for item in file.references] == [
        ("", "a"), ("f", "b"), ("f", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        "a();" * 100_000,
        "f(" * 4000 + ")" * 4000,
        "import {" + ",".join(f"n{i}" for i in range(60_000)) + "} from './x';",
        "x" + ".y()" * 5_000,
        "class A extends " + "(" * 2000 + "B" + ")" * 2000 + " {}",
        "g('" + "z" * 1_000_000 + "');",
    ],
    ids=["flat", "nested", "imports", "chain", "bases", "text"],
)
def test_hostile_files_stay_bounded(source: str) -> None:
    """Planted once: a pattern that waits for the module behind a list of names took 17 s."""
    started = time.process_time()

    file = _file_of(f"function m() {{ {source} }}\n", "javascript")
    seconds = time.process_time() - started

    assert len(file.references) <= MAX_PER_FILE
    by_node: dict[int, int] = {}
    for item in file.references:
        by_node[item.node] = by_node.get(item.node, 0) + 1
        assert len(item.name.encode()) <= 200
        assert len(item.qualifier.encode()) <= 200
    assert max(by_node.values(), default=0) <= MAX_PER_NODE
    assert seconds < 20


@given(st.text(alphabet="abf(). \n:{}[]'\"=*import class from def", max_size=300))
def test_any_text_has_references_of_its_own_nodes(source: str) -> None:
    for language in ("python", "javascript", "rust", "ruby"):
        file = _file_of(source, language)
        for item in file.references:
            assert 1 <= item.node <= len(file.nodes)
            assert 1 <= item.line <= file.line_count
