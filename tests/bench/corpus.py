"""Texts of real source code as `io` cuts it into nodes, without services or a database."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from services.io.content import file_digest, normal_form
from services.io.model import ParsedFile
from services.io.parser.file import ParseLimits, is_binary, parse_bytes
from services.io.parser.grammars import Grammars
from services.io.parser.languages import language_by_name
from services.io.signatures import signature_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TREES = (Path("build/corpora/django"), Path("build/corpora/flask"))
MODEL_TOKENS = 256
_SUFFIXES = {".py", ".js", ".html", ".css", ".rst", ".md"}
_SKIPPED = {"locale", "node_modules"}
_MAX_FILE_BYTES = 1 << 20
_MAX_NODES = 10_000


def sample_texts(
    count: int, *, seed: int = 7, max_tokens: int = MODEL_TOKENS, trees: Sequence[Path] = TREES
) -> list[str]:
    """Returns `count` different node texts, drawn at random: their lengths are the natural ones.

    Nodes above `max_tokens` are split as the indexer has them split.
    """
    texts = sorted({text for tree in trees for text in node_texts(tree, max_tokens=max_tokens)})
    assert len(texts) >= count, f"the corpora have {len(texts)} texts; run `make corpora`"
    return random.Random(seed).sample(texts, count)


def cached_texts(scratch: Path, count: int) -> list[str]:
    """Returns `sample_texts`, kept in a folder: parsing the trees takes seconds."""
    kept = scratch / f"texts-{count}.json"
    if not kept.exists():
        kept.write_text(json.dumps(sample_texts(count)))
    texts: list[str] = json.loads(kept.read_text())
    return texts


def node_texts(tree: Path, *, max_tokens: int) -> Iterator[str]:
    """Yields the text of each node of the source files beneath a folder."""
    limits = ParseLimits(_MAX_FILE_BYTES, _MAX_NODES, max_tokens)
    grammars = Grammars()
    for path in sorted(tree.rglob("*")):
        if path.suffix not in _SUFFIXES or _SKIPPED & set(path.parts) or ".min." in path.name:
            continue
        data = path.read_bytes()
        if is_binary(data) or len(data) > _MAX_FILE_BYTES:
            continue
        parsed = parse_bytes(
            data,
            language_by_name(path.name),
            limits,
            grammars,
            signature=signature_of(path.stat()),
            digest=file_digest(data),
        )
        if isinstance(parsed, ParsedFile):
            for node in parsed.nodes:
                spans = node.segments or ((node.start, node.end),)
                text = normal_form(data, [(start, end) for start, end in spans])
                if text:
                    yield text
