"""The join of the arms and the priors of files and nodes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.indexer.model import NodeId, NodeKind
from services.indexer.search.model import Hit
from services.indexer.search.question import read_question
from services.indexer.search.ranking import Arms, Ranked, parts_of, rank
from services.indexer.search.weights import WEIGHTS, Ranking, read_weights

_SCORES = st.dictionaries(
    st.integers(0, 20).map(NodeId), st.floats(0, 30, allow_nan=False), max_size=12
)


def _hit(
    node: int,
    *,
    path: str = "",
    name: str = "name",
    kind: NodeKind = NodeKind.FUNCTION,
    part: int = 0,
) -> Hit:
    where = path or f"file{node}.py"
    return Hit(
        "tree", NodeId(node), where, b"", kind, name, "python", node, node + 1, 1, 1, 0, part
    )


def _rank(query: str, scores: dict[Hit, float], ranking: Ranking | None = None) -> list[Ranked]:
    """Ranks hits by scores that both arms gave."""
    found = {hit.node_id: score for hit, score in scores.items()}
    return rank(ranking or Ranking(), read_question(query), Arms(found, found), scores)


def _ids(ranked: list[Ranked]) -> list[int]:
    return [item.hit.node_id for item in ranked]


@given(dense=_SCORES, lexical=_SCORES)
def test_each_node_that_an_arm_found_has_a_place(
    dense: dict[NodeId, float], lexical: dict[NodeId, float]
) -> None:
    arms = Arms(dense, lexical)

    ranked = rank(Ranking(), read_question("x y"), arms, [_hit(node) for node in arms.nodes])

    assert {item.hit.node_id for item in ranked} == arms.nodes
    assert [item.hit.score for item in ranked] == sorted(
        (item.hit.score for item in ranked), reverse=True
    )
    assert all(item.hit.score >= 0 for item in ranked)


@given(dense=_SCORES, lexical=_SCORES)
def test_no_file_is_behind_one_that_both_arms_put_after_it(
    dense: dict[NodeId, float], lexical: dict[NodeId, float]
) -> None:
    arms = Arms(dense, lexical)
    order = _ids(rank(Ranking(), read_question("x y"), arms, [_hit(n) for n in arms.nodes]))

    for first in arms.nodes:
        for second in arms.nodes:
            pairs = [(arm.get(first), arm.get(second)) for arm in (arms.dense, arms.lexical)]
            if all(a is not None and b is not None and a > b for a, b in pairs):
                scores = {item: order.index(item) for item in (first, second)}
                assert scores[first] < scores[second] or _tied(pairs)


def _tied(pairs: list[tuple[float | None, float | None]]) -> bool:
    """Scores whose difference the spread over the arm's range swallows."""
    return all(a is not None and b is not None and a - b < 1e-9 for a, b in pairs)


@pytest.mark.parametrize("query", ["src/app.py run", "src/app.py:run", "./src/app.py::run()"])
def test_of_one_name_in_some_files_that_of_the_named_file_is_first(query: str) -> None:
    """Red when the path is not told from the name: then the better score is."""
    other, asked = _hit(1, path="lib/run.py", name="run"), _hit(2, path="src/app.py", name="run")

    assert _ids(_rank(query, {other: 9.0, asked: 5.0})) == [2, 1]


_PATHS = ["a.py"] * 24 + ["b.py"] * 8 + ["c.py"]
_FOUND = st.integers(0, 30).flatmap(
    lambda least: st.dictionaries(
        st.integers(0, len(_PATHS) - 1).map(NodeId),
        st.tuples(st.floats(0.1, 1), st.floats(0.1, 30), st.booleans()),
        min_size=least,
    )
)
"""By node: what each arm gives, and whether it is but a window."""


@given(_FOUND)
def test_scores_are_those_of_the_formula(found: dict[NodeId, tuple[float, float, bool]]) -> None:
    """Planted once: nodes added up as they come, an 11th that counts, and no factor at all."""
    hits = [
        _hit(node, path=_PATHS[node], kind=NodeKind.WINDOW if window else NodeKind.FUNCTION)
        for node, (_, _, window) in found.items()
    ]
    arms = Arms(
        {node: dense for node, (dense, _, _) in found.items()},
        {node: lexical for node, (_, lexical, _) in found.items()},
    )

    ranked = rank(Ranking(), read_question("x y"), arms, hits)

    scores = {item.hit.node_id: item.hit.score for item in ranked}
    assert scores == pytest.approx(_by_hand(arms, hits))


def _by_hand(arms: Arms, hits: list[Hit]) -> dict[NodeId, float]:
    """Returns the scores of hits that no name and no place makes better or worse."""
    least, most = min(arms.dense.values(), default=0), max(arms.dense.values(), default=0)
    best = max(arms.lexical.values(), default=1)
    scores: dict[NodeId, float] = {}
    for path in {hit.path for hit in hits}:
        own = [hit for hit in hits if hit.path == path]
        factors = [0.9 if hit.kind is NodeKind.WINDOW else 1.0 for hit in own]
        dense = [
            factor * ((arms.dense[hit.node_id] - least) / (most - least) if most > least else 1)
            for hit, factor in zip(own, factors, strict=True)
        ]
        lexical = [
            factor * arms.lexical[hit.node_id] / best
            for hit, factor in zip(own, factors, strict=True)
        ]
        file = sum(score * 0.6**at for at, score in enumerate(sorted(dense)[:-11:-1])) / 2
        file += sum(score * 0.5**at for at, score in enumerate(sorted(lexical)[:-11:-1])) / 2
        worth = [(a + b) / 2 for a, b in zip(dense, lexical, strict=True)]
        order = sorted(range(len(own)), key=lambda at: (-worth[at], own[at].start_byte))
        for place, at in enumerate(order):
            scores[own[at].node_id] = file * worth[at] / worth[order[0]] * 0.2**place
    return scores


@given(st.permutations([_hit(i) for i in range(8)]))
def test_the_order_of_hits_does_not_depend_on_the_order_they_came_in(hits: list[Hit]) -> None:
    scores = {hit: 1 / (1 + hit.node_id // 2) for hit in hits}

    assert _ids(_rank("x y", scores)) == list(range(8))


def test_the_definition_of_the_name_that_is_asked_for_comes_first() -> None:
    scores = {_hit(1, name="caller"): 1.2, _hit(2, name="Router.find"): 1.0, _hit(3): 0.0}

    assert _ids(_rank("find", scores))[0] == 2


def test_a_definition_inside_the_named_scope_comes_before_one_elsewhere() -> None:
    scores = {_hit(1, name="Store.get"): 1.0, _hit(2, name="Cache.get"): 1.0, _hit(3): 0.0}

    assert _ids(_rank("Cache::get", scores))[0] == 2
    assert _ids(_rank("Store.get", scores))[0] == 1


def test_a_name_that_a_sentence_mentions_counts_too() -> None:
    scores = {_hit(1, name="other"): 1.0, _hit(2, name="parse_body"): 0.9, _hit(3): 0.0}

    assert _ids(_rank("how does parse_body treat an empty one", scores))[0] == 2


def test_a_later_part_of_a_definition_does_not_come_before_the_first() -> None:
    scores = {_hit(1, name="load", part=1): 1.0, _hit(2, name="load"): 1.0, _hit(3): 0.0}

    assert _ids(_rank("load", scores))[0] == 2


def test_a_definition_comes_before_a_window_of_text() -> None:
    scores = {_hit(1, kind=NodeKind.WINDOW): 1.0, _hit(2): 1.0, _hit(3): 0.0}

    assert _ids(_rank("x y", scores))[0] == 2


@pytest.mark.parametrize(
    ("query", "path", "other"),
    [
        ("load config", "src/a.py", "tests/a.py"),
        ("test of load config", "tests/a.py", "src/a.py"),
        ("how to install", "src/setup_tool.py", "README.md"),
        ("guide how to install", "docs/install.md", "src/other.py"),
        ("load config", "src/a.py", "examples/a.py"),
        ("example of load", "examples/a.py", "src/b.py"),
        ("parse the body", "api/v2/core.ts", "api/v1/core.ts"),
        ("parse the body in v1", "api/v1/core.ts", "api/v2/core.ts"),
        ("background tasks", "background.py", "params.py"),
        ("URL path mapping", "urlmap.rb", "static.rb"),
        ("utility functions", "utils.go", "context.go"),
        ("request parameters", "params.rs", "tree.rs"),
        ("routing table", "routing/mod.rs", "extract/mod.rs"),
        ("store/cache.py", "deep/store/cache.py", "deep/store/other.py"),
        ("cache.py", "deep/store/cache.py", "deep/cachepy.txt"),
        ("deep/store/cache.py:12", "deep/store/cache.py", "deep/store/cache.pyi"),
        ("/home/me/deep/store/cache.py", "store/cache.py", "deep/cache.py"),
    ],
)
def test_a_path_speaks_for_its_file(query: str, path: str, other: str) -> None:
    least = _hit(3, path="zzz.py")
    scores = {_hit(1, path=path): 1.0, _hit(2, path=other): 1.0, least: 0.0}

    assert _ids(_rank(query, scores))[0] == 1


def test_an_old_version_is_no_less_when_no_newer_one_was_found() -> None:
    scores = {_hit(1, path="api/v1/core.ts"): 1.0, _hit(2, path="lib/v2/core.ts"): 0.9}

    assert _ids(_rank("parse the body", scores)) == [1, 2]


def test_one_file_does_not_fill_the_first_page() -> None:
    scores = {_hit(i, path="same.py"): 1.0 - i / 1000 for i in range(5)}

    ordered = _rank("x y", {**scores, _hit(9): 0.9, _hit(10): 0.0})

    assert ordered[1].hit.node_id == 9


def test_a_description_of_one_function_may_find_several_of_a_file() -> None:
    scores = {_hit(i, path="same.py"): 1.0 - i / 1000 for i in range(3)} | {
        _hit(9): 0.7,
        _hit(10): 0,
    }
    words = " ".join(f"word{number}" for number in range(13))

    assert [hit.path for hit in _firsts(words, scores)] == ["same.py"] * 3
    assert [hit.path for hit in _firsts("load(config);", scores)] == ["same.py"] * 3
    assert [hit.path for hit in _firsts("word1 word2", scores)][1] == "file9.py"


def _firsts(query: str, scores: dict[Hit, float]) -> list[Hit]:
    return [item.hit for item in _rank(query, scores)][:3]


def test_several_middling_nodes_of_a_file_say_more_than_a_lucky_one() -> None:
    many = {_hit(i, path="many.py"): 0.8 for i in range(4)}

    ordered = _rank("x y", {**many, _hit(9): 1.0, _hit(10): 0.0})

    assert ordered[0].hit.path == "many.py"


def test_what_hits_are_worth_in_their_file_tells_their_scores_but_for_one_factor() -> None:
    """Red when the bonus of a definition, or the factor of a window, is told among the arms."""
    hits = [
        _hit(1, path="a.py", name="find_it"),
        _hit(2, path="a.py", kind=NodeKind.WINDOW),
        _hit(3, path="a.py"),
    ]
    arms = Arms({NodeId(1): 0.5, NodeId(2): 0.9, NodeId(3): 0.1}, {NodeId(3): 2.0})
    question, ranking = read_question("where is find_it"), Ranking()

    parts = parts_of(ranking, question, arms, hits)

    share = ranking.dense_share(question.kind)
    assert parts[NodeId(1)] == pytest.approx((share / 2, 1, ranking.mention_bonus))
    assert parts[NodeId(2)] == pytest.approx((share, ranking.outline_factor, 0))
    assert parts[NodeId(3)] == pytest.approx((1 - share, 1, 0))
    ranked = rank(ranking, question, arms, hits)
    pooling = [item.fused / parts[item.hit.node_id].worth for item in ranked]
    assert pooling == pytest.approx([pooling[0]] * 3)


def test_a_hit_tells_the_factors_of_its_score() -> None:
    (ranked,) = _rank("load", {_hit(1, path="tests/load.py", name="load"): 1.0})

    assert ranked.factors["test"] == Ranking().test_factor
    assert ranked.fused == pytest.approx(1 + Ranking().symbol_bonus)
    assert ranked.hit.score == pytest.approx(ranked.fused * math.prod(ranked.factors.values()))
    assert ranked.factors["file"] == pytest.approx(1 + Ranking().subject_bonus)


def test_weights_can_be_named() -> None:
    assert read_weights(["test_factor=1", "dense_pool=0.5"]) == Ranking(
        test_factor=1, dense_pool=0.5
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("tests=1", "no weight"),
        ("test_factor", "test_factor=number"),
        ("test_factor=x", "test_factor=number"),
        ("test_factor=-1", "0 to 100"),
        ("natural_dense_share=2", "0 to 1"),
        ("test_factor=nan", "0 to 100"),
    ],
)
def test_a_weight_that_is_none_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_weights([assignment])


def test_every_weight_has_what_it_is_in_its_name() -> None:
    kinds = {"share", "pool", "factor", "bonus", "limit", "power", "smoothing"}
    assert all(name.rpartition("_")[2] in kinds for name in WEIGHTS)


_LONG = " ".join(f"word{number}" for number in range(12))
_SAME_FILE = {_hit(i, path="same.py"): 1.0 - i / 1000 for i in range(12)}


@pytest.mark.parametrize(
    ("weight", "value", "query", "scores", "times"),
    [
        ("pool_limit", 0, "x y", {_hit(1, path="a.py"): 1.0, _hit(2, path="a.py"): 1.0}, 1 / 1.55),
        ("pool_limit", 12, "x y", _SAME_FILE, None),
        ("method_factor", 1, "load", {_hit(1, name="load", kind=NodeKind.METHOD): 1.0}, 2 / 1.5),
        ("block_factor", 1, "load", {_hit(1, name="load", kind=NodeKind.BLOCK): 1.0}, 1.9 / 1.4),
        ("later_part_factor", 1, "load", {_hit(1, name="load", part=1): 1.0}, 2 / 1.3),
        ("scope_factor", 1, "Store::get", {_hit(1, name="Store.get"): 1.0}, 2 / 3),
        ("partial_word_factor", 0, "utility", {_hit(1, path="utils.go"): 1.0}, 1 / 1.24),
        ("folder_limit", 1, "a_b c_d", {_hit(1, path="a/b/c/x.py"): 1.0}, 1.1 / 1.2),
        ("detail_limit", 11, _LONG, _SAME_FILE, 1.0),
    ],
)
def test_a_weight_changes_the_scores_that_it_is_named_for(
    weight: str, value: float, query: str, scores: dict[Hit, float], times: float | None
) -> None:
    """Red when a constant stands where the weight should. Without `times`, the best score grows."""
    before = _rank(query, scores)
    after = _rank(query, scores, read_weights([f"{weight}={value}"]))

    assert [item.hit.score for item in after] != [item.hit.score for item in before]
    if times is None:
        assert after[0].hit.score > before[0].hit.score
    else:
        assert after[0].hit.score == pytest.approx(before[0].hit.score * times)


def test_where_no_term_is_found_the_vectors_tell_the_order() -> None:
    """Red when a question of one word, which may be a name, leaves them no share."""
    hits = [_hit(node) for node in (1, 2, 3)]
    arms = Arms(dense={NodeId(1): 0.2, NodeId(2): 0.6, NodeId(3): 0.4})

    for word in ("zweckdienlich", "\u8ba4\u8bc1", "NotThere", "not/there.py"):
        assert _ids(rank(Ranking(), read_question(word), arms, hits)) == [2, 3, 1], word


def test_a_word_that_nothing_is_called_is_looked_for_by_vectors_too() -> None:
    """A name that only code has stays a name; so does a word that something is called."""
    hits = [_hit(1), _hit(2)]
    lexical = {NodeId(1): 2.0, NodeId(2): 1.9}
    arms = Arms(dense={NodeId(1): 0.1, NodeId(2): 0.9}, lexical=lexical)
    named = Arms(dense=arms.dense, lexical=lexical, named=frozenset({NodeId(1)}))

    assert _ids(rank(Ranking(), read_question("authentication"), arms, hits)) == [2, 1]
    assert _ids(rank(Ranking(), read_question("authentication"), named, hits)) == [1, 2]
    assert _ids(rank(Ranking(), read_question("AuthHandler"), arms, hits)) == [1, 2]


@pytest.mark.parametrize("query", ["Record.save!", "save!", "save"])
def test_a_definition_is_found_with_and_without_its_mark(query: str) -> None:
    """Red when the mark of Ruby's names is taken off the question and not off the name."""
    other, marked = _hit(1, name="Record.other"), _hit(2, name="Record.save!")

    assert _ids(_rank(query, {other: 2.0, marked: 1.0})) == [2, 1]
    assert "save!" in read_question(query).spelled_names
