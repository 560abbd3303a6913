"""How code and questions are cut into terms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.search.stemming import stem
from services.indexer.search.terms import content_terms, name_terms, query_terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("getHTTPResponse_v2", "gethttpresponse_v2 get http respons v2"),
        ("snake_case_name", "snake_case_name snak case name"),
        ("XMLHttpRequest", "xmlhttprequest xml http request"),
        ("__init__", "init"),
        ("utf8", "utf8"),
        ("sha256sum", "sha256sum sha256 sum"),
        ("MAX_SIZE", "max_size max size"),
        ("x", "x"),
        ("x.b->c", "x b c"),
        ("handlers", "handl"),
        ("parsingErrors", "parsinger pars error"),
        ("größeÄndern", "größeändern größe ändern"),
        ("искатьФайл", "искатьфайл искать файл"),
        ("用户", "用户"),
        ("加载用户配置", "加载用户配置 加载 载用 用户 户配 配置"),
        ("get用户Name2", "get用户name2 get 用户 name2"),
        ("ユーザーを読む", "ユーザーを読む ユー ーザ ザー ーを を読 読む"),
        ("파일을", "파일을 파일 일을"),
        ("1234", "1234"),
        ("", ""),
        ("+-*/ \0", ""),
    ],
)
def test_an_identifier_counts_as_itself_and_as_its_words(text: str, terms: str) -> None:
    assert query_terms(text) == tuple(terms.split())


def test_every_occurrence_counts() -> None:
    assert content_terms("load(load, loadAll)") == {"load": 3, "loadall": 1, "all": 1}


def test_a_name_has_the_terms_of_its_path_too() -> None:
    assert set(name_terms("db/store.py", "Cache.getItem")) == {
        "db",
        stem("store"),
        "py",
        stem("cache"),
        "getitem",
        "get",
        "item",
    }


def test_a_long_run_of_letters_is_cut() -> None:
    assert all(len(term) <= 64 for term in content_terms("a" * 10_000 + " " + "B" * 10_000))


def test_the_number_of_terms_is_bounded_and_the_frequent_ones_stay() -> None:
    text = " ".join(f"w{i}x" for i in range(20_000)) + " often" * 50

    terms = content_terms(text)

    assert len(terms) == 4096
    assert terms["often"] == 50


@given(st.text(max_size=200))
def test_terms_hold_nothing_that_would_divide_them(text: str) -> None:
    for term, count in content_terms(text).items():
        assert term
        assert count > 0
        assert not any(character.isspace() or character == "\0" for character in term)


@given(st.text(max_size=200))
def test_a_question_with_the_text_itself_holds_its_terms_but_for_empty_words(text: str) -> None:
    content = set(content_terms(text))

    assert set(query_terms(text)) <= content
    assert bool(query_terms(text)) == bool(content)


@given(st.text(alphabet="bcXYZ_019 .", max_size=60))
def test_the_case_of_a_question_does_not_hide_a_whole_name(text: str) -> None:
    whole = {stem(word.strip("_").lower()) for word in text.replace(".", " ").split()} - {""}

    assert whole - {"by"} <= set(query_terms(text))


def test_terms_of_names_and_of_texts_match_whatever_the_form_of_a_word() -> None:
    assert set(query_terms("handling of errors")) <= set(content_terms("handler(error)"))
    assert set(query_terms("handles errors")) <= set(name_terms("handlers.py", "Error"))
