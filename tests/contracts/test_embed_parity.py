"""Vectors and token ids beside sentence-transformers' own: real functions, scripts, poison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.embed.app import EmbedApp
from services.embed.backends import cpu
from services.embed.model import Embedding, EmbedOptions, Precision, Purpose, Truncation
from tests.bench.corpus import TREES, sample_texts
from tests.unit.embed.harness import bundled_folder, settings_of

if TYPE_CHECKING:
    from services.embed.model import Vectors

LONG_TOKENS = 100_000
"""Nodes up to this are not split: some are longer than the model reads."""
FUNCTIONS = 320
SCRIPTS = {
    "cyrillic": "Удаляет старые файлы и возвращает их число. Ёлка, съезд, объём.",
    "cjk": "古いファイルを削除し、その数を返す。旧文件将被删除。오래된 파일을 삭제합니다.",
    "arabic": "يحذف الملفات القديمة ويعيد عددها؛ مَرْحَبًا بِكُمْ",
    "hebrew-and-marks": "מוחק קבצים ישנים. שָׁלוֹם",
    "emoji": "🎉🚀👩‍👩‍👧‍👦🏳️‍🌈 done ✅ 1️⃣",
    "combining": "e\u0301a\u0308o\u0302 Z\u0351\u036b\u0343 \u1e69 s\u0323\u0307",
    "composed-and-not": "\u00e9 e\u0301 \ufb01 \uff26\uff35\uff2c\uff2c \u2460 \u1d54f",
    "devanagari-thai": "पुरानी फ़ाइलें हटाता है ลบไฟล์เก่า",
    "mathematical": "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → γ",  # noqa: RUF001
    "direction-marks": "\u202eabc\u202c \u200bzero\u200dwidth\u2066x\u2069",
}
POISON = {
    "empty": "",
    "space": " \t\n ",
    "nul": "a\0b\0",
    "only-nul": "\0",
    "byte-order-mark": "\ufeffimport os",
    "end-of-text": "before <|endoftext|> after",
    "special-tokens": "[CLS] first [SEP] second [SEP] [PAD] [MASK] [UNK]",
    "special-tokens-in-lower-case": "[cls][sep][mask]",
    "one-word": "return",
    "one-sign": "}",
    "replacement": "\ufffd\ufffd",
    "private-and-unassigned": "\ue000\U0010fffd\u0378",
    "long-word": "x" * 5000,
    "nested": "(" * 3000,
    "hex": "0123456789abcdef" * 400,
    "megabyte": "value = compute(value) + 1; " * (2**20 // 28),
}
EXACT, CLOSE = 0.9999, 0.999

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@dataclass(frozen=True)
class Reference:
    """What the library answers for all texts, and the ids that it reads."""

    texts: list[str]
    vectors: Vectors
    ids: list[list[int]]
    whole_tokens: list[int]


@pytest.fixture(scope="module")
def reference() -> Reference:
    from sentence_transformers import SentenceTransformer

    if not all(tree.is_dir() for tree in TREES):
        pytest.skip("the corpora are not there: run `make corpora`")
    texts = sample_texts(FUNCTIONS, max_tokens=LONG_TOKENS, seed=11)
    texts = [text[:20_000] for text in texts]
    texts += [text.format(n) for n in (1, 2) for text in ("x{}", "def f{}():")]
    texts += [*SCRIPTS.values(), *POISON.values()]
    model = SentenceTransformer(str(bundled_folder()), device="cpu", local_files_only=True)
    tokenizer: Any = model.tokenizer
    vectors: Vectors = model.encode(texts, batch_size=32, normalize_embeddings=True)
    return Reference(
        texts,
        vectors,
        tokenizer(texts, truncation=True, max_length=256)["input_ids"],
        [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]],
    )


def test_the_texts_reach_from_one_token_to_far_more_than_the_model_reads(
    reference: Reference,
) -> None:
    lengths = reference.whole_tokens[:FUNCTIONS]

    assert min(reference.whole_tokens) == 2  # both special tokens alone
    assert sum(length > 256 for length in lengths) >= 20
    assert sum(length < 32 for length in lengths) >= 20


def _cases() -> list[Any]:
    fast = cpu.has_fast_bfloat16()
    slow = pytest.mark.skipif(not fast, reason="this CPU converts every bfloat16 twice")
    return [
        pytest.param("openvino", "float32", id="openvino-float32"),
        pytest.param("openvino", "bfloat16", id="openvino-bfloat16", marks=slow),
        pytest.param("openvino", "auto", id="openvino-auto"),
        pytest.param("torch", "float32", id="torch-float32"),
        pytest.param("torch", "bfloat16", id="torch-bfloat16", marks=slow),
    ]


@pytest.mark.parametrize(("backend", "precision"), _cases())
async def test_every_text_has_the_librarys_vector_and_its_number_of_tokens(
    reference: Reference, backend: str, precision: str
) -> None:
    """Red when pooling counts padding, when a text is cut elsewhere, or ids are not the library's.

    Planted: a mask of ones in `pad` gives a cosine of 0.17 to the empty text.
    """
    app = EmbedApp(settings_of(model="minilm", backend=backend, precision=precision))
    await app.start()
    (status,) = app._registry.statuses()
    options = EmbedOptions(Purpose.DOCUMENT, Truncation.END)
    outcomes = []
    with app._registry.borrowed(status.model_id) as model:
        for at in range(0, len(reference.texts), 256):
            outcomes += await model.embed(reference.texts[at : at + 256], options)
    await app.close()

    assert status.info is not None
    assert all(isinstance(outcome, Embedding) for outcome in outcomes)
    rows = np.stack([np.frombuffer(outcome.vector, "<f4") for outcome in outcomes])  # type: ignore[union-attr]
    cosines = np.einsum("ij,ij->i", rows, reference.vectors, dtype=np.float64)
    cosines /= np.linalg.norm(rows, axis=1)
    least = EXACT if status.info.precision is Precision.FLOAT32 else CLOSE
    worst = int(cosines.argmin())
    assert cosines[worst] >= least, (worst, reference.texts[worst][:80])
    for outcome, ids, whole in zip(outcomes, reference.ids, reference.whole_tokens, strict=True):
        assert isinstance(outcome, Embedding)
        assert outcome.token_count == len(ids)
        assert outcome.truncated == (whole > 256)


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
async def test_ids_are_the_librarys_under_the_same_truncation(
    reference: Reference, truncation: Truncation
) -> None:
    """Special tokens that are spelt out in a text are read as the library reads them."""
    from transformers import AutoTokenizer

    library: Any = AutoTokenizer.from_pretrained(str(bundled_folder()), local_files_only=True)
    library.truncation_side = "left" if truncation is Truncation.START else "right"
    expected = library(reference.texts, truncation=True, max_length=256)["input_ids"]
    app = EmbedApp(settings_of(model="minilm", backend="openvino"))
    await app.start()
    (status,) = app._registry.statuses()
    with app._registry.borrowed(status.model_id) as model:
        encoded = model._encoder.encode(reference.texts, truncation)
    await app.close()

    for at, (item, ids) in enumerate(zip(encoded, expected, strict=True)):
        assert item.ids.tolist() == ids, (at, reference.texts[at][:80])  # type: ignore[union-attr]
    special = library.convert_tokens_to_ids("[SEP]")
    spelt = expected[reference.texts.index(POISON["special-tokens"])]
    assert spelt.count(special) == 3
