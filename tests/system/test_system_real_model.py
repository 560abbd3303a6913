"""A real tree, the real model, and a search that finds what a person means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.index_rows import index_rows

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Lodestone


@pytest.fixture(scope="module")
def package(flask_source: Path) -> Path:
    """Flask's own package, without its tests and pages: what a person would ask about."""
    return flask_source / "src"


@pytest.mark.timeout(300)
def test_flask_is_indexed_to_the_end_and_found_by_meaning(
    real_product: Lodestone, package: Path
) -> None:
    done = real_product.run("index", str(package), "--json", timeout_seconds=280)

    report = done.json
    rows = index_rows(real_product, report["workspace"])
    assert report["state"] == "succeeded", done.stderr
    assert report["nodes"]["failed"] == 0
    assert len(rows.nodes) == len(rows.vectors) == report["nodes"]["total"] > 400
    assert 0 < report["forwards"] <= report["nodes"]["total"]
    hits = real_product.search("sign the cookie that remembers a visitor", package)
    assert "flask/sessions.py" in {hit["path"] for hit in hits}, [hit["path"] for hit in hits]

    unchanged = real_product.index(package)
    assert unchanged["forwards"] == 0


def test_every_command_prints_json(real_product: Lodestone, package: Path) -> None:
    run = real_product.index(package)["run"]

    assert real_product.run("status", "--json").json["model"]["dimensions"] == 384
    assert real_product.run("workspaces", "--json").json[0]["path"] == str(package)
    assert real_product.run("runs", "--json").json[0]["run"] == run
    assert real_product.run("run", run, "--json").json["failures"] == []
    assert real_product.run("doctor", "--json").code == 0


def test_the_printed_report_and_search_name_what_a_person_needs(
    real_product: Lodestone, package: Path
) -> None:
    report = real_product.run(
        "index", str(package), "--first-search", "--query", "render a template"
    )

    assert report.code == 0, report.stderr
    for word in (
        "files",
        "nodes",
        "forwards",
        "First search",
        "render_template",
        "lodestone search",
    ):
        assert word in report.stdout
