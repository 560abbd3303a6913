"""A change costs what it deserves: one edited function, one forward."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from tests.support.index_rows import index_rows
from tests.support.postgres import Database

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Lodestone

_MARK = "def url_for(\n"


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_counts_add_up_to_what_the_tables_hold(product: Lodestone, flask: Path) -> None:
    report = product.index(flask)

    database = Database(product.database_url())
    in_workspace = f"""workspace_id = (SELECT id FROM workspaces
        WHERE name = '{report["workspace"]}')"""
    counted = database.execute(
        f"SELECT status, count(*) FROM nodes WHERE {in_workspace} GROUP BY status"
    )
    nodes = report["nodes"]
    assert report["state"] == "succeeded"
    assert counted == f"embedded|{nodes['total']}"
    assert nodes["embedded"] + nodes["reused"] + nodes["failed"] == nodes["total"]
    files = database.execute(
        f"SELECT count(*) FROM files WHERE {in_workspace} AND state = 'indexed'"
    )
    assert int(files) == report["files"]["scanned"]


def test_an_unchanged_tree_costs_no_forward(product: Lodestone, flask: Path) -> None:
    first = product.index(flask)

    second = product.index(flask)

    assert second["forwards"] == 0
    assert second["nodes"]["total"] == first["nodes"]["total"]
    assert second["nodes"]["reused"] == first["nodes"]["total"]


def test_an_edited_function_costs_one_forward(product: Lodestone, flask: Path) -> None:
    product.index(flask)
    _edit(
        flask / "helpers.py", "    return current_app.url_for(", "    return current_app.link_to("
    )

    assert product.index(flask)["forwards"] == 1
    assert any("link_to(" in hit["text"] for hit in product.search("url_for link_to", flask))


def test_a_comment_between_two_functions_costs_nothing(product: Lodestone, flask: Path) -> None:
    """Everything below it moves; what moves keeps its vector, and search shows the new lines."""
    product.index(flask)
    before = _hit(product, flask)
    _edit(flask / "helpers.py", _MARK, f"# Builds links.\n\n\n{_MARK}")

    assert product.index(flask)["forwards"] == 0
    assert _hit(product, flask)["start_line"] == before["start_line"] + 3


def test_a_renamed_file_costs_nothing(product: Lodestone, flask: Path) -> None:
    product.index(flask)
    (flask / "helpers.py").rename(flask / "assistants.py")

    assert product.index(flask)["forwards"] == 0
    assert _hit(product, flask)["path"] == "assistants.py"


def test_a_moved_file_costs_nothing(product: Lodestone, flask: Path) -> None:
    product.index(flask)
    (flask / "deep").mkdir()
    (flask / "helpers.py").rename(flask / "deep" / "helpers.py")

    assert product.index(flask)["forwards"] == 0
    assert _hit(product, flask)["path"] == "deep/helpers.py"


def test_a_copied_file_costs_nothing_and_is_found(product: Lodestone, flask: Path) -> None:
    product.index(flask)
    shutil.copy(flask / "helpers.py", flask / "copy.py")

    assert product.index(flask)["forwards"] == 0
    hits = product.search("url_for", flask)
    assert {"helpers.py", "copy.py"} <= {hit["path"] for hit in hits}


def test_a_deleted_file_is_gone_from_search(product: Lodestone, flask: Path) -> None:
    first = product.index(flask)
    (flask / "helpers.py").unlink()

    second = product.index(flask)

    assert second["forwards"] == 0
    assert second["nodes"]["removed"] > 0
    assert second["nodes"]["total"] == first["nodes"]["total"] - second["nodes"]["removed"]
    assert "helpers.py" not in {hit["path"] for hit in product.search("url_for", flask)}


def test_switching_a_branch_and_back_costs_nothing_on_the_way_back(
    product: Lodestone, flask: Path, tmp_path: Path
) -> None:
    main = tmp_path / "main"
    shutil.copytree(flask, main)
    first = product.index(flask)
    _edit(flask / "helpers.py", _MARK, f"def on_the_branch():\n    return 1\n\n\n{_MARK}")
    (flask / "cli.py").unlink()
    there = product.index(flask)

    shutil.rmtree(flask)
    shutil.copytree(main, flask)
    back = product.index(flask)

    assert there["forwards"] == 1
    assert back["forwards"] == 0
    assert back["nodes"]["total"] == first["nodes"]["total"]


def test_edits_one_by_one_end_as_an_index_from_scratch(product: Lodestone, flask: Path) -> None:
    product.index(flask)
    _edit(flask / "helpers.py", _MARK, f"# Builds links.\n{_MARK}")
    product.index(flask)
    (flask / "cli.py").rename(flask / "command.py")
    product.index(flask)
    _edit(flask / "app.py", "class Flask(", "class Bottle(")
    shutil.copy(flask / "globals.py", flask / "state.py")
    edited = product.index(flask)

    scratch = product.index(flask, "--workspace", "from-scratch", "--full")

    assert index_rows(product, edited["workspace"]) == index_rows(product, scratch["workspace"])


def test_excluded_files_are_left_out(product: Lodestone, flask: Path) -> None:
    report = product.index(flask, "--exclude", "helpers.py")

    assert report["state"] == "succeeded"
    assert "helpers.py" not in {hit["path"] for hit in product.search("url_for", flask)}


def _hit(product: Lodestone, flask: Path) -> dict[str, Any]:
    hits = product.search("url_for", flask, limit=50)
    return next(
        hit for hit in hits if hit["name"] == "url_for" and "current_app.url_for(" in hit["text"]
    )
