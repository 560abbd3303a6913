"""The scores of an evaluation, by examples worked out by hand."""

from __future__ import annotations

import ast
import math
from typing import TYPE_CHECKING

import pytest

from services.indexer.model import NodeId, NodeKind
from services.indexer.search.blending import blended, rerank_places
from services.indexer.search.model import Hit
from services.indexer.search.weights import DEFAULTS, WEIGHTS, read_weights
from tests.eval.offline import Package, table
from tests.eval.scoring import Target, interval, score
from tests.eval.shapes import make_shapes
from tests.eval.shares import joined
from tests.eval.stages import ABLATIONS, RERANKED, SHARES, setting, without
from tests.eval.tasks import Task, make_tree

if TYPE_CHECKING:
    from pathlib import Path

_A, _B, _C = Target("a.py", 1, 9), Target("b.py", 1, 9), Target("c.py", 1, 9)


@pytest.mark.parametrize(
    ("results", "targets", "ndcg", "mrr", "recall"),
    [
        ([_A], [Target("a.py")], 1.0, 1.0, 1.0),
        ([_B, _A], [Target("a.py")], 1 / math.log2(3), 0.5, 1.0),
        ([_B], [Target("a.py")], 0.0, 0.0, 0.0),
        ([_A, _B], [Target("a.py"), Target("b.py")], 1.0, 1.0, 1.0),
        ([_A, _A, _B], [Target("a.py"), Target("b.py")], 1.5 / (1 + 1 / math.log2(3)), 1.0, 1.0),
        ([_A], [Target("a.py"), Target("b.py")], 1 / (1 + 1 / math.log2(3)), 1.0, 0.5),
        ([*[_B] * 10, _A], [Target("a.py")], 0.0, 0.0, 0.0),
        ([Target("src/a.py", 1, 2)], [Target("a.py")], 1.0, 1.0, 1.0),
        ([_A], [Target("src/a.py")], 1.0, 1.0, 1.0),
        ([Target("ba.py", 1, 2)], [Target("a.py")], 0.0, 0.0, 0.0),
        ([_A], [Target("a.py", 9, 12)], 1.0, 1.0, 1.0),
        ([_A], [Target("a.py", 10, 12)], 0.0, 0.0, 0.0),
        ([_A], [Target("a.py", 9, 12, 0.5)], 0.0, 0.0, 0.0),
        ([_A], [Target("a.py", 5, 12, 0.5)], 1.0, 1.0, 1.0),
    ],
)
def test_a_score_is_what_it_is_by_hand(
    results: list[Target], targets: list[Target], ndcg: float, mrr: float, recall: float
) -> None:
    found = score(results, targets)

    assert (found.ndcg, found.mrr, found.recall) == pytest.approx((ndcg, mrr, recall))


def test_an_interval_holds_the_mean_and_shrinks_with_more_values() -> None:
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 1000)

    assert few[0] < many[0] < 0.5 < many[1] < few[1]


def test_what_is_asked_is_not_in_the_tree_that_is_indexed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "app.py").write_text(
        '"""Module words."""\n\n\nclass Store:\n    """Keeps the things that people gave it."""\n\n'
        '    def get(self, key):\n        """Returns the thing that was kept under a key.\n\n'
        '        More.\n        """\n        return self.things[key]\n\n\ndef lone(): ...\n\n\n'
        'def only_words():\n    """Says in five words nothing."""\n'
    )
    (source / "test_app.py").write_text("from app import Store\n\n\ndef test_lone():\n    pass\n")

    tasks = make_tree(source, tmp_path / "tree")

    text = (tmp_path / "tree" / "app.py").read_text()
    ast.parse(text)
    assert "kept under" not in text
    assert "Module words" not in text
    asked = {(task.kind, task.query): task.targets[0] for task in tasks}
    docs = "Returns the thing that was kept under a key. More."
    assert asked["docstring", docs] == Target("app.py", 7, 12, 0.5)
    assert asked["docstring", "Says in five words nothing."].start_line == 18
    assert asked["symbol", "Store"].start_line == 4
    assert asked["test", "what test_lone tests"].start_line == 15
    assert asked["import", "from app import Store"] == Target("app.py")


def test_a_table_says_that_no_reranker_was_given_rather_than_nothing() -> None:
    """Red when a stage that was not run is left out, or has another number of columns."""
    package = Package("made", "")
    scored = [(Task("symbol", "q", (_A,)), score([_A], [_A]))]

    without = table({"made": {"fused": scored}}, [package]).splitlines()
    given = table({"made": {"fused": scored, RERANKED: scored}}, [package]).splitlines()

    assert without[-1].startswith(f"| made | {RERANKED} | no model given |")
    assert len({line.count("|") for line in without}) == 1
    assert given[-1].startswith(f"| made | {RERANKED} | 1.000 |")
    assert len(given) == len(without)


def test_every_weight_is_in_an_ablation_that_changes_it() -> None:
    """Red when a weight is added and nothing measures it. A reranker's are no part of a search."""
    measured = {name for prior in ABLATIONS for name in without(prior)}

    assert measured | set(SHARES) == {name for name in WEIGHTS if not name.startswith("rerank_")}
    assert all(read_weights(setting(without(prior))) != DEFAULTS for prior in ABLATIONS)


_SCRIPT = """import { send } from "./wire.js";

/**
 * Sends what is kept to the server at once.
 * @param {Thing} thing No word of this.
 */
export const flush = (thing) => {
  send(thing);
};

// About the next in more than five words.
function plain() {}

class Store {
  /** Returns the thing that was kept under a key. */
  get(key) {}
}
"""
_PLAIN_C = """#include "wire.h"
/* Frees all the memory that a reply took,
 * and its children. */
static void *free_reply(struct reply *one) {
  return 0;
}

/* A comment that stands for itself alone. */

int count_replies(void) { return 1; }
"""
_RUST = """/// Splits a text where its words end.
///
/// # Examples
/// ```
/// no word of this
/// ```
#[inline]
pub fn split_words(text: &str) {}

struct Kept;

#[cfg(test)]
mod tests {
    #[test]
    fn test_split_words() {}
}
"""


def test_comments_before_functions_are_asked_for_and_not_in_the_tree(tmp_path: Path) -> None:
    """Red when a comment stays in the text, is taken from a neighbour, or moves a line."""
    source = tmp_path / "source"
    source.mkdir()
    for name, text in {
        "a.js": _SCRIPT,
        "wire.js": "",
        "b.c": _PLAIN_C,
        "wire.h": "",
        "c.rs": _RUST,
    }.items():
        (source / name).write_text(text)

    tasks = make_tree(source, tmp_path / "tree")

    left = {file.name: file.read_text() for file in (tmp_path / "tree").iterdir()}
    assert {name: text.count("\n") for name, text in left.items()} == {
        "a.js": _SCRIPT.count("\n"), "wire.js": 0, "b.c": _PLAIN_C.count("\n"), "wire.h": 0,
        "c.rs": _RUST.count("\n"),
    }  # fmt: skip
    assert not any(
        word in "".join(left.values())
        for word in ("server", "kept under", "memory", "Splits", "Examples")
    )
    assert "for itself alone" in left["b.c"]
    asked = {(task.kind, task.query): task.targets[0] for task in tasks}
    assert {
        query: (at.path, at.start_line, at.end_line)
        for (kind, query), at in asked.items()
        if kind == "docstring"
    } == {
        "Sends what is kept to the server at once.": ("a.js", 7, 9),
        "Returns the thing that was kept under a key.": ("a.js", 16, 16),
        "Frees all the memory that a reply took, and its children.": ("b.c", 4, 6),
        "Splits a text where its words end.": ("c.rs", 7, 8),
    }
    assert {query for kind, query in asked if kind == "symbol"} == {
        "flush", "plain", "Store", "get", "free_reply", "count_replies", "split_words", "Kept",
    }  # fmt: skip
    assert asked["test", "what test_split_words tests"].start_line == 7
    assert asked["import", 'import { send } from "./wire.js"'] == Target("wire.js")
    assert asked["import", '#include "wire.h"'] == Target("wire.h")


def test_a_tree_is_asked_by_pieces_of_code_and_by_paths(tmp_path: Path) -> None:
    """A piece has neither the names that its function chose nor a comment."""
    (tmp_path / "app").mkdir()
    steps = "".join(f"        result = self.step_{at}(result)\n        # note\n" for at in range(8))
    body = f"        result = key\n{steps}        return result\n"
    (tmp_path / "app" / "store.py").write_text(f"class Store:\n    def get(self, key):\n{body}")

    asked = {task.kind: task for task in make_shapes(tmp_path)}

    assert asked["code"].query.split("\n") == [f"v0 = self.step_{at}(v0)" for at in (2, 3, 4, 5)]
    assert asked["code"].targets == (Target("app/store.py", 2, 20, 0.5),)
    assert (asked["path"].query, asked["module"].query) == ("app/store.py", "app.store")
    assert asked["module"].targets == (Target("app/store.py"),)
    names = [task.query for task in make_shapes(tmp_path) if task.kind.endswith("name")]
    assert {"app/store.py Store.get", "app.store.Store.get", "app/store.py Store"} <= set(names)


def test_shares_are_tried_by_the_order_that_search_would_give() -> None:
    """Red when what is tried is another blend than that of `services.indexer.search.blending`."""
    hits = [
        Hit(
            "w", NodeId(at), f"{at}.py", b"", NodeKind.FUNCTION, "f", "python", 0, 1, 1, 1, 9.0 - at
        )
        for at in range(5)
    ]
    scores = {NodeId(0): 0.1, NodeId(2): 0.9, NodeId(3): 0.5}
    ranks = rerank_places(hits, scores)
    orders = [
        (Target(hit.path), place, ranks.get(hit.node_id, 0)) for place, hit in enumerate(hits, 1)
    ]

    for share in (0.0, 0.3, 0.5, 1.0):
        expected = [Target(hit.path) for hit in blended(hits, scores, share, 60)]
        assert joined(orders, share) == expected
    assert joined(orders, 1.0) != joined(orders, 0.0)
