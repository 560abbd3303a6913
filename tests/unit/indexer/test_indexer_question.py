"""Which kind of question is asked, and what a path says."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.search.places import read_place
from services.indexer.search.question import QuestionKind, read_question
from services.indexer.search.stemming import stem
from services.indexer.search.subjects import SubjectMatcher


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Router", "symbol"),
        ("Rack::Response", "symbol"),
        ("Store.get()", "symbol"),
        ("empty?", "symbol"),
        ("Tesla.Env", "symbol"),
        ("obj->field", "symbol"),
        ("src/app/main.go", "path"),
        ("app/models/", "path"),
        ("for (int i = 0; i < n; i++)", "code"),
        ("def load(path):", "code"),
        ("items.map(x => x.id)", "code"),
        ("func main() {", "code"),
        ("return self.value", "code"),
        ("return load(path)", "code"),
        ("import numpy as np", "code"),
        ("import os, sys", "code"),
        ("from flask import g", "code"),
        ("import {z} from 'zod'", "code"),
        ('#include "hiredis.h"', "code"),
        ("use std::io;", "code"),
        ("const total = items.length", "code"),
        ("for item in items:\n    yield item", "code"),
        ('@app.route("/")', "code"),
        ("{a: 1, b: 2}", "code"),
        ("if (a == b)", "code"),
        ("class that renders templates", "natural"),
        ("import a module lazily", "natural"),
        ("return early when the cache is warm", "natural"),
        ("return a value.", "natural"),
        ("from dict to model", "natural"),
        ("func pointers", "natural"),
        ("route with {id} in its path", "natural"),
        ("wait; then retry", "natural"),
        ("read/write", "natural"),
        ("TCP/IP", "natural"),
        ("src/app.py", "path"),
        ("./src", "path"),
        ("app/", "path"),
        ("a-b/c_d", "path"),
        ("src/app.py Router.add", "symbol"),
        ("src/app.py:Router", "symbol"),
        ("tests/test_app.py::TestApp::test_add", "symbol"),
        ("read/write locks", "natural"),
        ("src/app.py registers routes", "natural"),
        ("src/app.py:12", "path"),
        ("src\\app.py", "path"),
        ("App\\Models\\User", "natural"),
        ("10:30", "natural"),
        ("how are routes registered", "natural"),
        ("ZodError structure", "natural"),
        ("", "natural"),
    ],
)
def test_a_question_is_of_a_kind(text: str, kind: str) -> None:
    assert read_question(text).kind == QuestionKind(kind)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("how does parse_body work", ["parse_body"]),
        ("ZodError structure", ["zoderror"]),
        ("HTTPServer and HttpClient", ["httpserver", "httpclient"]),
        ("Rack::Builder", ["builder"]),
        ("the Rack::Builder class", ["builder"]),
        ("HTTP request", []),
        ("Request validation", []),
        ("_private", ["_private"]),
    ],
)
def test_names_are_told_from_words(text: str, names: list[str]) -> None:
    assert list(read_question(text).own_names) == names


@pytest.mark.parametrize(
    ("text", "path", "names"),
    [
        ("src/app.py Router.add()", "src/app.py", [("router", "add")]),
        ("./src/app.py:Router", "./src/app.py", [("router",)]),
        ("tests/test_app.py::TestApp::test_add", "tests/test_app.py", [("testapp", "test_add")]),
        (" src/app.py ", "src/app.py", []),
        ("Router.add", "Router.add", [("router", "add")]),
        (r"\w+\.py:12", r"\w+\.py:12", []),
        (r"app\.run", r"app\.run", []),
        ("/src/app.py:12", "/src/app.py", []),
        ("src/app.py:12", "src/app.py", []),
        ("src/app.py:12:7:", "src/app.py", []),
        ("src/app.py:12-20", "src/app.py", []),
        ("src/app.py#L12-L20", "src/app.py", []),
        ("C:\\site\\src\\app.py:12", "/site/src/app.py", []),
        ("src\\app.py::Router", "src/app.py", [("router",)]),
    ],
)
def test_a_place_is_a_path_and_a_name(text: str, path: str, names: list[tuple[str, ...]]) -> None:
    question = read_question(text)

    assert (question.path, list(question.names)) == (path, names)


def test_words_that_say_nothing_are_left_out_unless_they_are_all() -> None:
    assert read_question("how does the router work").terms == (stem("router"), "work")
    assert read_question("with").terms == ("with",)


@pytest.mark.parametrize(
    "piece",
    [
        "a(",
        "word_x ",
        "A::",
        "_a.",
        "/a",
        "x.",
        "def ",
        "zZ9_",
        "{,",
        "{",
        "\n",
        "; ",
        "a = ",
        "import ",
        ",",
        "a/b.c",
        "a/.",
        "a/b.c d.",
        "a\\b.c:1",
        "a.b\\",
    ],
)
def test_a_long_question_costs_little(piece: str) -> None:
    """8 KiB that a pattern might take long over; the time is of this process alone."""
    text = piece * (8192 // len(piece))
    started = time.process_time()

    question = read_question(text)
    matcher = SubjectMatcher(question.terms, question.words, 0.8)
    for number in range(200):
        matcher.share(read_place(f"deep/urlmap{number}x/urlmap{number}x.py").subject)

    assert time.process_time() - started < 1.0
    assert len(question.terms) <= 128


@pytest.mark.parametrize("text", ["_a." * 24, "/a.b::" + "_a." * 24])
def test_an_underscore_before_a_name_is_read_in_one_way(text: str) -> None:
    """Two ways for each part of a name were 2^24 ways to try, and no search was answered."""
    started = time.process_time()

    read_question(text)

    assert time.process_time() - started < 1.0


@given(st.text(max_size=300))
def test_any_text_is_a_question(text: str) -> None:
    question = read_question(text)

    assert all(name for name in question.own_names)
    assert len(question.names) <= 8


@pytest.mark.parametrize(
    "path",
    [
        "tests/test_app.py", "conftest.py", "pkg/app_test.go", "spec/models/user_spec.rb",
        "src/__tests__/a.tsx", "src/a.test.ts", "src/a.spec.js", "src/test/java/org/A.java",
        "core/FooTest.kt", "core/FooTests.cs", "core/FooSpec.scala", "test/app_test.exs",
        "src/commonTest/kotlin/A.kt", "Tests/FooTests.swift", "tests/FooTest.php",
        "crates/a/benches/b.rs", "testdata/x.go", "fixtures/x.json", "src/tests.rs",
        "test/test_memory.c", "test/Foo_test.cc", "e2e/login.ts", "spec/foo.lua",
    ],
)  # fmt: skip
def test_tests_of_each_ecosystem_are_known(path: str) -> None:
    assert read_place(path).is_test


@pytest.mark.parametrize(
    "path",
    [
        "src/contest.py", "attestation/x.go", "src/latest.ts", "lib/inspect.rb", "Commit.kt",
        "Audit.java", "src/protest/a.c", "special/x.rs", "src/testimony.py", "edit.swift",
    ],
)  # fmt: skip
def test_what_only_sounds_like_a_test_is_none(path: str) -> None:
    assert not read_place(path).is_test


@pytest.mark.parametrize(
    "path", ["README.md", "docs/a.html", "CHANGES", "doc/apiref.rst", "lib/LICENSE", "a/b.ipynb"]
)
def test_documents_are_known(path: str) -> None:
    assert read_place(path).is_document


@pytest.mark.parametrize("path", ["CMakeLists.txt", "src/docstring.py", "src/historian.go"])
def test_what_only_sounds_like_a_document_is_none(path: str) -> None:
    assert not read_place(path).is_document


@pytest.mark.parametrize(
    ("path", "aside"),
    [
        ("vendor/x/y.go", True),
        ("third_party/zlib/a.c", True),
        ("examples/hello.rs", True),
        ("api/v1/a.pb.go", True),
        ("gen/a_pb2.py", True),
        ("dist/app.min.js", True),
        ("pkg/_compat/v2.py", True),
        ("deprecated.go", True),
        ("js/thirdparty/a.js", True),
        ("api/a.gen.go", True),
        ("src/__generated__/a.ts", True),
        ("Forms/Main.Designer.cs", True),
        ("src/parser.tab.c", True),
        ("six/py2_compat.py", True),
        ("ios/Pods/A/a.swift", True),
        ("lib/site-packages/a.py", True),
        ("src/exampled.go", False),
        ("distutils/dist.py", False),
        ("src/i18n.py", False),
        ("pkg/external.go", False),
        ("src/generator.py", False),
        ("lib/distance.py", False),
    ],
)
def test_what_stands_aside_is_known(path: str, *, aside: bool) -> None:
    assert bool(read_place(path).asides) is aside


@pytest.mark.parametrize(
    ("question", "path"),
    [
        ("an example of streaming", "examples/stream.py"),
        ("sample app", "examples/app.py"),
        ("vendored copy of requests", "third_party/requests/a.py"),
        ("third party code", "vendor/a.go"),
        ("generated protobuf stubs", "api/user_pb2.py"),
        ("generated grpc code", "api/user.pb.go"),
        ("minified bundle", "static/app.min.js"),
        ("compatibility layer", "lib/compat/old.py"),
        ("deprecated functions", "legacy/a.c"),
        ("translations of messages", "conf/locale/de.py"),
        ("typings of the client", "index.d.ts"),
    ],
)
def test_a_question_asks_for_what_stands_aside_by_any_of_its_words(
    question: str, path: str
) -> None:
    assert not read_place(path).asides.isdisjoint(read_question(question).wants_aside)


@pytest.mark.parametrize(
    ("question", "path"),
    [
        ("tree node insertion", "node_modules/a.js"),
        ("call external services", "external/a.c"),
        ("generate an id", "generated/a.py"),
        ("examples", "vendor/a.go"),
    ],
)
def test_a_word_that_stands_in_a_path_by_chance_asks_for_nothing(question: str, path: str) -> None:
    """Red when the words of the path itself are what a question may ask for."""
    assert read_place(path).asides.isdisjoint(read_question(question).wants_aside)


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("src/path_router.rs", ("path", "rout")),
        ("routing/mod.rs", ("rout",)),
        ("pkg/__init__.py", ("pkg",)),
        ("Core/TypeConverter.cs", ("type", "convert")),
        ("lib/follow-redirects.js", ("follow", "redirect")),
        ("index.ts", ("index",)),
        (".github/ci.yml", ("ci",)),
    ],
)
def test_a_file_is_called_after_its_subject(path: str, subject: tuple[str, ...]) -> None:
    assert read_place(path).subject == subject


@pytest.mark.parametrize(
    "group",
    [
        "handle handles handler handlers handling handled",
        "validate validates validator validation validating validated",
        "serialize serializer serialization serializing",
        "route routes router routing",
        "parse parser parsing parsed",
        "query queries",
        "class classes",
        "match matches matching matcher",
        "extract extractor extraction extracting",
    ],
)
def test_forms_of_one_word_have_one_stem(group: str) -> None:
    assert len(set(map(stem, group.split()))) == 1


@pytest.mark.parametrize("pair", ["error err", "use user", "string strong", "cat cats2", "io ion"])
def test_other_words_keep_apart(pair: str) -> None:
    one, other = pair.split()

    assert stem(one) != stem(other)


@given(st.text(max_size=80))
def test_a_stem_is_never_empty_and_no_longer(word: str) -> None:
    assert len(stem(word)) <= len(word)
    assert bool(stem(word)) == bool(word)
