"""Makes of source trees what a reranker is trained on: questions, an answer, and what is near it.

Questions are made as `tests.eval.tasks` makes them, and in more forms. Texts are those of the nodes
that search finds, as it sends them to a reranker. What is near is what both arms of a search find:
terms by BM25, and vectors of the model that the training starts from.
"""

from __future__ import annotations

import ast
import random
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bm25s
import numpy as np

from services.indexer.search.terms import content_terms, query_terms, words
from services.io.model import ParsedFile
from services.io.parser.file import ParseLimits, is_binary, parse_bytes
from services.io.parser.grammars import Grammars
from services.io.parser.languages import language_by_name
from services.io.signatures import signature_of
from tests.eval import commented
from tests.eval.scoring import Target
from tests.eval.tasks import strip_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.eval.definitions import Definition

    Encode = Callable[[Sequence[str]], np.ndarray[Any, np.dtype[np.float32]]]

NEAR = 30
"""Nearest texts that are kept of a question: as many as are reranked when search is measured."""

_MOST_CHARS = 8192
"""As `services.indexer.search.reranking` sends."""
_LIMITS = ParseLimits(max_file_bytes=1 << 20, max_nodes=10_000, max_tokens=256)
_MOST_BYTES, _LEAST_BYTES = 100_000, 400
_LEAST_CHARS = 40
_LEAST_WORDS, _MOST_ASKED = 4, 300
_MOST_QUESTIONS = 400
_SMOOTHING = 60
_IGNORED = re.compile(r"(^|/)(node_modules|vendor|_vendor|locale|data|migrations)/|\.min\.js$")
_DEFINES = re.compile(r"^\s*(?:async def|def|class|fn|pub fn|function)\b", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*:])")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and where its answer is."""

    kind: str
    text: str
    target: Target
    name: str
    """Of the definition: others of this name are no wrong answers."""
    is_whole_file: bool = False
    """Whether other nodes of the file are right as well."""


@dataclass(frozen=True, slots=True)
class Example:
    """A question, its answer, and the texts that a search of both arms finds first."""

    kind: str
    query: str
    answer: str
    near: tuple[str, ...]
    """At most `NEAR`, the nearest first; the answer is one of them, or was not found."""
    place: int
    """Where the answer is among them, from 0; -1 when it is not."""
    dense_place: int
    """The same by vectors alone."""

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is near and no answer."""
        return tuple(text for at, text in enumerate(self.near) if at != self.place)


@dataclass(frozen=True, slots=True)
class Piece:
    """A node: its place, and the text that a reranker is sent."""

    place: Target
    text: str


def read_pieces(root: Path) -> list[Piece]:
    """Returns the nodes of all files of a tree, in the order of their paths."""
    grammars, pieces = Grammars(), []
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        data = file.read_bytes()
        if is_binary(data):
            continue
        parsed = parse_bytes(
            data,
            language_by_name(file.name),
            _LIMITS,
            grammars,
            signature=signature_of(file.stat()),
            digest=b"",
        )
        path = file.relative_to(root).as_posix()
        for node in parsed.nodes if isinstance(parsed, ParsedFile) else ():
            text = data[node.start : node.end].decode(errors="replace")[:_MOST_CHARS]
            pieces.append(Piece(Target(path, node.start_line, node.end_line), text))
    return pieces


def mark_of(text: str) -> str:
    """Returns what equal texts share, however they are spaced."""
    return sha256(_SPACES.sub("", text).encode()).hexdigest()


def make_examples(
    source: Path, encode: Encode, *, seed: int, most_pieces: int, foreign: frozenset[str]
) -> tuple[list[Example], int]:
    """Returns the examples of a tree in random order, and how many nodes are copies of others.

    Args:
        source: the tree; a sample of its files is read.
        encode: gives vectors of length one.
        seed: decides the sample.
        most_pieces: about how many nodes are read.
        foreign: marks of texts that must not be trained on.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="lodestone-train-") as scratch:
        sample, tree = Path(scratch) / "sample", Path(scratch) / "tree"
        # Its own folder is part of its paths, as imports name it.
        _copy_sample(source, sample / source.name, chance, most_pieces)
        found, imports = strip_tree(sample, tree)
        pieces = [each for each in read_pieces(tree) if len(each.text) >= _LEAST_CHARS]
    own = [each for each in pieces if mark_of(each.text) not in foreign]
    copies = len(pieces) - len(own)
    questions = [*_questions(found, chance), *_import_questions(imports, found)]
    chance.shuffle(questions)
    asked = questions[:_MOST_QUESTIONS]
    return list(_examples(asked, own[: 2 * most_pieces], encode)), copies


def _copy_sample(source: Path, target: Path, chance: random.Random, most_pieces: int) -> None:
    """Copies files in random order until they hold about so many definitions."""
    target.mkdir(parents=True)
    suffixes = {".py", *commented.SUFFIXES} - {".h"}
    files = [path for path in sorted(source.rglob("*")) if path.suffix in suffixes]
    chance.shuffle(files)
    defined = 0
    for file in files:
        path = file.relative_to(source).as_posix()
        if _IGNORED.search(path) or not _LEAST_BYTES <= file.stat().st_size <= _MOST_BYTES:
            continue
        try:
            text = file.read_text("utf-8")
            if file.suffix == ".py":
                ast.parse(text)
        except (SyntaxError, ValueError):
            continue  # made for tests of parsers
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        defined += len(_DEFINES.findall(text))
        if defined >= most_pieces:
            return


def _questions(found: Sequence[Definition], chance: random.Random) -> Iterator[Question]:
    """Yields questions for definitions: by what was written of them, by their names, by tests."""
    code = [item for item in found if not item.is_test]
    names = Counter(item.name for item in code)
    docs = Counter(_told(item) for item in code)
    for item in code:
        told = _told(item)
        if docs[told] == 1 and len(told.split()) >= _LEAST_WORDS:
            first = _SENTENCE.split(told)[0]
            yield Question("docstring", told[:_MOST_ASKED], item.target, item.name)
            if first != told and len(first.split()) >= _LEAST_WORDS:
                yield Question("sentence", first[:_MOST_ASKED], item.target, item.name)
        if names[item.name] == 1 and not item.name.startswith("_"):
            split = " ".join(words(item.name))
            if len(split.split()) > 1:
                yield Question("words", split, item.target, item.name)
            if chance.random() < 0.5:
                yield Question("symbol", item.name, item.target, item.name)
    unique = {item.name: item for item in code if names[item.name] == 1}
    for item in found:
        tested = unique.get(item.name.removeprefix("test_"))
        if item.is_test and tested and tested.name != item.name:
            yield Question("test", f"what {item.name} tests", tested.target, tested.name)


def _import_questions(
    imports: Sequence[tuple[str, str]], found: Sequence[Definition]
) -> Iterator[Question]:
    """Yields imports of what one file of the tree alone defines."""
    for end, statement in sorted(set(imports)):
        imported = set(re.findall(r"\w+", statement.partition("import")[2]))
        fits = [
            item
            for item in found
            if item.name in imported
            and f"/{item.path}".endswith((f"/{end}", f"/{end}.py", f"/{end}/__init__.py"))
        ]
        if fits and len({item.path for item in fits}) == 1:
            first = fits[0]
            yield Question("import", statement, first.target, first.name, is_whole_file=True)


def _told(item: Definition) -> str:
    return " ".join(item.doc.split())


def _examples(
    questions: Sequence[Question], pieces: Sequence[Piece], encode: Encode
) -> Iterator[Example]:
    if not questions or not pieces:
        return
    index = bm25s.BM25()
    index.index([_repeated(each.text) for each in pieces], show_progress=False)
    vectors = encode([each.text for each in pieces])
    asked = encode([each.text for each in questions])
    for question, vector in zip(questions, asked, strict=True):
        right = [at for at, each in enumerate(pieces) if question.target.is_hit_by(each.place)]
        if not right:
            continue
        closeness = vectors @ vector
        terms = [term for term in query_terms(question.text) if term in index.vocab_dict]
        scores = index.get_scores(terms) if terms else np.zeros(len(pieces))
        example = _example(question, right, pieces, closeness, scores)
        if example.wrong:
            yield example


def _example(
    question: Question, right: Sequence[int], pieces: Sequence[Piece], closeness: Any, scores: Any
) -> Example:
    """Returns an example of the fused order of both arms, without what may be right as well."""
    answer = right[0]
    also_right = {*right[1:]}
    name = re.compile(rf"\b(?:def|class|fn|function)\s+{re.escape(question.name)}\b")
    near: list[int] = []
    for at in np.argsort(-(_inverted(closeness) + _inverted(scores)), kind="stable").tolist():
        piece = pieces[at]
        is_same_file = piece.place.path == question.target.path
        if at != answer and (
            at in also_right
            or piece.text == pieces[answer].text
            or (is_same_file and question.is_whole_file)
            or (not is_same_file and name.search(piece.text))
        ):
            continue
        near.append(at)
        if len(near) == NEAR:
            break
    by_closeness = sorted(near, key=lambda at: -closeness[at])
    is_near = answer in near
    return Example(
        question.kind,
        question.text,
        pieces[answer].text,
        tuple(pieces[at].text for at in near),
        near.index(answer) if is_near else -1,
        by_closeness.index(answer) if is_near else -1,
    )


def _inverted(values: Any) -> Any:
    """Returns the inverted place of each value, the largest first."""
    places = np.empty(len(values))
    places[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return 1 / (_SMOOTHING + places)


def _repeated(text: str) -> list[str]:
    return [term for term, count in content_terms(text).items() for _ in range(count)]
