"""Nodes of real files: in order, whole, and with all of the code in some text.

Pinned archives (`make corpora`) have programs in Go, Rust, Java, C# and bash, and TypeScript as
declarations (`.d.ts`). Ruby, PHP, Swift and Scala have the example files of Pygments. Kotlin, TSX
and TypeScript with bodies come from an archive of npm, and only where there is an `npm`.

Red when statements that a class's outline has no room for are dropped, when a part below a long doc
comment opens with the signature that it goes on to hold, or when a token that the grammar made up
counts as a statement: all three were found here. Red as well when more than a few files of a
source are taken as plain text, as where a suffix is unknown or a file with errors is given up.
"""

from __future__ import annotations

import random
import shutil
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.io.model import ParsedFile
from services.io.parser.file import is_binary
from services.io.parser.languages import LANGUAGES, MARKDOWN, TEXT, language_by_name
from tests.unit.io.boundaries import check_file
from tests.unit.io.parsing import outcome_of

SITE = Path(sysconfig.get_paths()["purelib"])
SAMPLES = Path(__file__).parent / "samples"
CORPORA = Path("build/corpora")
EXAMPLES = CORPORA / "pygments/tests/examplefiles"
REAL_FILES = {
    "flask": (CORPORA / "flask", "**/*.py", 60),
    "django": (CORPORA / "django", "**/*.py", 80),
    "javascript of django": (CORPORA / "django", "**/*.js", 30),
    "stubs": (SITE / "mypy/typeshed/stdlib", "*.pyi", 40),
    "headers of numpy": (SITE / "numpy", "**/*.h", 30),
    "C of numpy": (SITE / "numpy", "**/*.c", 20),
    "headers of openvino": (SITE / "openvino/include", "**/*.hpp", 40),
    "CUDA of torch": (SITE / "torch/include/ATen/native/cuda", "*.cuh", 20),
    "C++ of torchgen": (SITE / "torchgen", "**/*.cpp", 20),
    "Rust of cryptography": (CORPORA / "cryptography/src", "**/*.rs", 10),
    "Go of cryptography": (CORPORA / "cryptography", "**/*.go", 5),
    "Java of python-for-android": (CORPORA / "android", "**/*.java", 10),
    "C# of ansible": (CORPORA / "ansible", "**/*.cs", 4),
    "bash of ansible": (CORPORA / "ansible", "**/*.sh", 5),
    "TypeScript declarations of bokeh": (CORPORA / "bokeh", "**/*.ts", 20),
    **{
        f"{suffix} examples of pygments": (EXAMPLES, f"{suffix}/*.{suffix}", 12)
        for suffix in ("rb", "php", "swift", "scala")
    },
    "Kotlin of react-native-screens": (CORPORA / "screens/android", "**/*.kt", 40),
    "TSX of react-native-screens": (CORPORA / "screens/src", "**/*.tsx", 30),
    "TypeScript of react-native-screens": (CORPORA / "screens/src", "**/*.ts", 30),
    "Markdown": (SITE, "*/**/*.md", 20),
}
"""Folders of this installation, what is taken of them, and how many files at most."""
LEAST_SHARE_WITH_GRAMMAR = 0.6
"""Of the files of a source; the examples of Ruby of Pygments, broken on purpose, have the least."""
MAX_BYTES = 60_000
SMALL_BUDGET_TOKENS = 32
CHARACTERS = ("é", "🎉", "中", "\u2028", "\t", "\r", "{", "}", "(", "#", '"', "'", "/*", " ")


def real_texts(folder: Path, glob: str, count: int) -> list[tuple[str, str]]:
    """Returns some files, drawn with a fixed seed, as path and text."""
    paths = sorted(path for path in folder.glob(glob) if path.stat().st_size <= MAX_BYTES)
    random.Random(20).shuffle(paths)
    found = [(str(path), path.read_bytes()) for path in paths[: 2 * count] if path.is_file()]
    return [(path, data.decode()) for path, data in found if not is_binary(data)][:count]


def check(path: str, text: str, max_tokens: int = 256) -> ParsedFile | None:
    """Checks the nodes of a file, and that they are the same when it is parsed again."""
    language = language_by_name(path.rpartition("/")[2])
    outcome = outcome_of(text, language, max_tokens)
    if not isinstance(outcome, ParsedFile):
        return None
    try:
        check_file(text.encode(), outcome)
    except AssertionError as error:
        error.add_note(f"in {path} with {max_tokens} tokens")
        raise
    assert outcome_of(text, language, max_tokens) == outcome
    return outcome


SAMPLE_TEXTS = [(path.name, path.read_text()) for path in sorted(SAMPLES.iterdir())]


def test_each_language_without_real_files_has_a_sample() -> None:
    real = {"c", "cpp", "javascript", "python"}
    sampled = {language_by_name(name) for name, _ in SAMPLE_TEXTS}
    assert real | sampled == {rules.name for rules in LANGUAGES}


@pytest.mark.parametrize(("name", "text"), SAMPLE_TEXTS, ids=[name for name, _ in SAMPLE_TEXTS])
def test_nodes_of_samples_hold_all_of_their_code(name: str, text: str) -> None:
    for max_tokens in (256, SMALL_BUDGET_TOKENS):
        parsed = check(name, text, max_tokens)
        assert parsed is not None
        assert parsed.language not in {TEXT, MARKDOWN}
        assert not parsed.has_syntax_errors
        assert len(parsed.nodes) > 5


def test_each_language_has_real_files() -> None:
    """Red when a source of `REAL_FILES` is dropped that is the only one of its language."""
    suffixes = {Path(glob).suffix for _, glob, _ in REAL_FILES.values()}
    real = {language_by_name(f"name{suffix}") for suffix in suffixes}
    assert real == {rules.name for rules in LANGUAGES} | {MARKDOWN}


@pytest.mark.slow
@pytest.mark.parametrize("source", REAL_FILES)
def test_nodes_of_real_files_hold_all_of_their_code(source: str) -> None:
    if source.endswith("react-native-screens") and not shutil.which("npm"):
        pytest.skip("there is no npm to fetch these files with")
    texts = real_texts(*REAL_FILES[source])
    assert texts
    parsed = [check(path, text) for path, text in texts]
    with_grammar = [file for file in parsed if file is not None and file.language != TEXT]
    assert len(with_grammar) >= LEAST_SHARE_WITH_GRAMMAR * len(texts)
    for path, text in texts:
        check(path, text, SMALL_BUDGET_TOKENS)


def mutations(texts: list[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    """Draws a file and deletes, repeats and breaks some of its lines."""
    edit = st.tuples(
        st.sampled_from(["delete", "repeat", "insert", "lengthen"]),
        st.integers(0, 10_000),
        st.integers(0, 200),
        st.sampled_from(CHARACTERS),
    )
    return st.tuples(st.sampled_from(texts), st.lists(edit, min_size=1, max_size=6)).map(
        lambda drawn: (drawn[0][0], _edited(drawn[0][1], drawn[1]))
    )


def _edited(text: str, edits: list[tuple[str, int, int, str]]) -> str:
    lines = text.split("\n")
    for what, line, number, character in edits:
        place = line % len(lines)
        match what:
            case "delete":
                lines[place : place + 1 + number % 6] = [""]
            case "repeat":
                lines[place:place] = lines[place : place + 1 + number % 5]
            case "insert":
                at = number % (len(lines[place]) + 1)
                lines[place] = lines[place][:at] + character + lines[place][at:]
            case _:
                lines[place] *= 1 + number % 30
    return "\n".join(lines)


@pytest.mark.slow
@given(mutations(SAMPLE_TEXTS), st.sampled_from([20, 64, 256]))
@settings(max_examples=120, deadline=None)
def test_nodes_of_broken_samples_lose_next_to_nothing(
    mutated: tuple[str, str], max_tokens: int
) -> None:
    check(*mutated, max_tokens)


def all_real_files() -> st.SearchStrategy[tuple[str, str]]:
    return mutations([text for source in REAL_FILES.values() for text in real_texts(*source)])


@pytest.mark.slow
@given(st.deferred(all_real_files), st.sampled_from([20, 64, 256]))
@settings(max_examples=120, deadline=None)
def test_nodes_of_broken_real_files_lose_next_to_nothing(
    mutated: tuple[str, str], max_tokens: int
) -> None:
    check(*mutated, max_tokens)
