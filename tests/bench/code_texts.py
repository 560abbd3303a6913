"""Texts of real nodes without a database: what the model reads for Django's functions."""

from __future__ import annotations

import json
import random
from pathlib import Path

from services.io.content import normal_form
from services.io.model import FileToParse, ParsedFile, Root, SymlinkPolicy
from services.io.parser.file import ParseLimits, parse_file
from services.io.parser.grammars import Grammars
from services.io.paths import Tree

TREE = Path("build/corpora/django")
_LIMITS = ParseLimits(max_file_bytes=2 << 20, max_nodes=10_000, max_tokens=256)
_SEED = 20


def code_texts(scratch: Path, count: int) -> list[str]:
    """Returns different texts drawn at random, the same each time; kept in `scratch`."""
    kept = scratch / "texts.json"
    if not kept.exists():
        kept.write_text(json.dumps(_read_all()))
    texts: list[str] = json.loads(kept.read_text())
    return random.Random(_SEED).sample(texts, count)


def _read_all() -> list[str]:
    top = TREE.resolve()
    grammars = Grammars()
    texts: dict[bytes, str] = {}
    with Tree(Root("bench", str(top), SymlinkPolicy.DENY)) as tree:
        for path in sorted(top.rglob("*.py")):
            file = FileToParse(0, path.relative_to(top).as_posix())
            parsed = parse_file(tree, file, _LIMITS, grammars)
            if isinstance(parsed, ParsedFile):
                data = path.read_bytes()
                for node in parsed.nodes:
                    segments = node.segments or ((node.start, node.end),)
                    texts[node.content_hash] = normal_form(data, segments)
    return list(texts.values())
