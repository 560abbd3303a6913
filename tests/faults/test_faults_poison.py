"""F9: files that are hostile to a parser, a database or a model, through the real services."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import Cluster, caller, fetch
from tests.faults.trees import write_generated
from tests.faults.truth import check_rules

if TYPE_CHECKING:
    from pathlib import Path

_MIB = 1 << 20
_GOOD_NODES = 4 * 9
"""Nodes of the four good files: eight functions and a docstring each."""

_POISONS: dict[str, bytes] = {
    "nul.py": b"def nul():\n    return '\0'\n",
    "name_with_nul.py": b"def na\0me():\n    return 1\n",
    "surrogate.py": b"def lone():\n    return '\xed\xa0\x80'\n",
    "invalid_utf8.py": b"def bad():\n    return '\xff\xfe\xfa'\n",
    "bom.py": b"\xef\xbb\xbfdef bom():\n    return 1\n",
    "utf16.py": "def wide():\n    return 1\n".encode("utf-16"),
    "special_token.py": b"def end():\n    return '<|endoftext|>[PAD]</s>'\n",
    "long_line.py": b"x = '" + b"a" * (3 * _MIB) + b"'\n",
    "one_line_under_the_limit.js": b"var x = [" + b"1," * 60_000 + b"1];\n",
    "many_functions.py": b"".join(b"def f%d(): pass\n" % i for i in range(20_000)),
    "nested.py": b"x = " + b"(" * 20_000 + b")" * 20_000 + b"\n",
    "nested.js": b"[" * 50_000 + b"]" * 50_000,
    "empty.py": b"",
    "only_newlines.py": b"\n" * 1000,
    "carriage.py": b"def cr():\r    return 1\r",
    "control.md": bytes(range(1, 32)) + b"\n# Title\n\ntext\n",
    "emoji.py": 'def \u0444():\n    return "\U0001f9e8\u200d\u0301"\n'.encode(),
}


def _write(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


@pytest.mark.timeout(180)
async def test_poison_harms_no_neighbour_and_no_later_run(cluster: Cluster) -> None:
    """Each file ends indexed, skipped, or failed with its reason, and all others are embedded.

    Red on a planted bug: a name with a NUL handed on to PostgreSQL, which refuses the whole batch.
    """
    name = "poison"
    folder = write_generated(cluster.roots / name, name, files=4)
    for file, content in _POISONS.items():
        _write(folder / "poison", file, content)
    async with caller(cluster) as calls:
        await calls.create(name, name)
        first = await calls.wait(await calls.begin(name), timeout_seconds=120)
        again = await calls.run(name)
        hits = await calls.search(name, "adds total for tree")

    assert first["state"] in {"succeeded", "succeeded_with_warnings"}, dict(first)
    assert first["nodes_pending"] == 0
    good = await fetch(
        cluster.url,
        """
        SELECT count(*) FILTER (WHERE n.status = 'embedded') AS embedded, count(*) AS all_of_them
        FROM nodes n JOIN files f ON f.workspace_id = n.workspace_id AND f.id = n.file_id
        WHERE n.workspace_id = $1 AND f.path NOT LIKE 'poison/%'
        """,
        first["workspace_id"],
    )
    assert tuple(good[0]) == (_GOOD_NODES, _GOOD_NODES)
    assert hits
    await _every_file_has_an_end(cluster, first["workspace_id"], first["id"])
    assert again["forwards"] == 0, "an unchanged tree is not embedded again"
    assert all(member.alive and member.starts == 1 for member in cluster.members)
    await check_rules(cluster)


async def _every_file_has_an_end(cluster: Cluster, workspace_id: int, run_id: object) -> None:
    """A poisoned file is in the table of files, in the outcomes, or skipped by the scan."""
    rows = await fetch(
        cluster.url,
        """
        SELECT f.path, f.state, f.skip_reason, array_agg(DISTINCT n.status) AS statuses
        FROM files f LEFT JOIN nodes n ON n.workspace_id = f.workspace_id AND n.file_id = f.id
        WHERE f.workspace_id = $1 AND f.path LIKE 'poison/%' GROUP BY 1, 2, 3
        """,
        workspace_id,
    )
    known = {row["path"].removeprefix("poison/") for row in rows}
    failed = await fetch(
        cluster.url,
        "SELECT path, error_reason FROM run_outcomes WHERE run_id = $1 "
        "AND result IN ('failed', 'timeout', 'stale')",
        run_id,
    )
    assert all(row["error_reason"] for row in failed)
    known |= {row["path"].removeprefix("poison/") for row in failed}
    skipped = await fetch(
        cluster.url, "SELECT skipped_by_reason::text, files_skipped FROM runs WHERE id = $1", run_id
    )
    left = _POISONS.keys() - known
    assert len(left) <= skipped[0]["files_skipped"], (left, skipped[0])
    for row in rows:
        assert (row["state"] == "skipped") == (row["skip_reason"] is not None), row
        assert set(row["statuses"]) <= {"embedded", "failed", None}, row
