"""What `lodestone check` prints of disagreements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lodestone.indexer.v1.maintenance_service_pb2 import Disagreement
from services.cli.check import _print

if TYPE_CHECKING:
    import pytest


def test_nodes_of_a_block_count_each_and_rows_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Red when a block of many nodes counts as one, or a row that tells no number as none."""
    found = [
        Disagreement(path="a.py", qualified_name="f", kind="postings_wrong", nodes=1200),
        Disagreement(kind="postings_wrong", nodes=34),
        Disagreement(path="b.py", kind="file_changed"),
        Disagreement(kind="lists_wrong"),
    ]

    _print(50_000, found, "workspaces/tree/indexRuns/1")

    told = capsys.readouterr().out
    assert "50,000 rows looked at, 1,236 disagree." in told
    assert "1,234 postings wrong" in told
    assert "1 file changed" in told
    assert "1 lists wrong" in told
    assert "indexRuns/1 redoes them." in told


def test_it_tells_of_which_model_a_vector_disagrees_and_which_models_were_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Red when all that is told of a vector is its node: a workspace may have several models."""
    found = [
        Disagreement(path="a.py", qualified_name="f", kind="vector_wrong", model="models/small"),
        Disagreement(path="b.py", kind="file_changed"),
    ]

    _print(10, found, "", ["models/away"])

    lines = capsys.readouterr().out.splitlines()
    assert "    a.py f with models/small" in lines
    assert "    b.py" in lines
    assert "Vectors of models/away were not made again: it is not served." in lines
