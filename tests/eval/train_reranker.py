"""Trains a cross-encoder on pinned packages: `python -m tests.eval.train_reranker`.

It starts from the weights of the default model, as no package brings those of a cross-encoder. What
is reported on in `docs/search-quality.md` is not trained on, nor is what repeats it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from services.embed.settings import EmbedSettings
from services.embed.sources import FolderSource, resolve_source
from services.indexer.search.blending import blended_order
from services.indexer.search.weights import DEFAULTS
from tests.eval.offline import PACKAGES
from tests.eval.tasks import strip_tree
from tests.eval.training_pairs import Example, make_examples, mark_of, read_pieces
from tests.support import corpora

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "build" / "reranker"
RETRIEVAL = ROOT / "build" / "retrieval"

TRAINED_ON = (
    *("ansible", "bokeh", "cryptography", "django", "android"),
    *("_pytest", "alembic", "anyio", "asyncpg", "attr", "fsspec", "hypothesis", "huggingface_hub"),
    *("joblib", "mako", "mpmath", "mypy", "networkx", "numpy", "opentelemetry", "openvino"),
    *("pydantic", "scipy", "sentence_transformers", "setuptools", "sklearn", "sympy", "torch"),
    *("transformers", "uvicorn"),
)
"""Corpora, then packages of the environment. Starlette and typer are left out for fastapi's sake,
and what flask, click and jinja2 share their code with."""

HELD_OUT = ("sqlalchemy", "rich")
"""Packages that the training is judged by."""

REPORTED = tuple(package.name for package in PACKAGES)
"""Corpora whose scores are told: what equals one of their nodes is not trained on."""

MAX_TOKENS = 128
"""Of a question and a text, in training and after it: half of what nodes are cut by takes a third
of the time, and most functions fit."""

_MINING_TOKENS = 128
_ASKED_OF_HELD_OUT = 100
_LISTS_A_STEP = 8
_CHUNK = 12
_CLIP = 1.0
_WARM_SHARE = 0.1
_STEPS_TOLD = 20


@dataclass(frozen=True, slots=True)
class Options:
    """How to train."""

    lists: int = 6000
    """Questions that are learnt from, each with an answer and wrong ones."""
    wrong: int = 5
    """Wrong texts beside an answer."""
    pieces: int = 1000
    """About how many nodes are read of a package."""
    minutes: float = 60
    """Most minutes; fewer questions are learnt from when they are over."""
    rate: float = 1e-4
    loss: str = "lists"
    """`lists` or `pairs`, see `loss_of`."""
    frozen: int = 0
    """Layers above the words, which are not trained, that are not trained either."""
    seed: int = 0
    bfloat16: bool = True


def base_folder() -> Path:
    """Returns the folder of the default model."""
    source = resolve_source(EmbedSettings())
    assert isinstance(source, FolderSource)
    return source.folder


def folder_of(package: str) -> Path:
    """Returns the source of a corpus, or of an installed package."""
    corpus = corpora.ROOT / package
    if corpus.is_dir():
        return corpus
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations, package
    return Path(spec.submodule_search_locations[0])


def gather(
    trees: Sequence[Path], base: Path, options: Options, foreign: frozenset[str]
) -> list[Example]:
    """Returns the examples of some trees, each in random order."""
    model = SentenceTransformer(str(base), device="cpu", local_files_only=True)
    model.max_seq_length = _MINING_TOKENS

    def encode(texts: Sequence[str]) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
            return model.encode(list(texts), batch_size=64, normalize_embeddings=True)

    examples: list[Example] = []
    for tree in trees:
        own, copies = make_examples(
            tree,
            encode,
            seed=options.seed,
            most_pieces=options.pieces,
            foreign=foreign,
        )
        say(f"{tree.name}: {len(own)} questions, {copies} nodes left out")
        examples += own
    return examples


def foreign_marks() -> frozenset[str]:
    """Returns the marks of what is reported on, as it is asked and as it is published.

    These are corpora, and the repositories of the labelled questions where they are here.
    """
    trees = [corpora.ROOT / name for name in REPORTED]
    trees += sorted(RETRIEVAL.iterdir()) if RETRIEVAL.is_dir() else []
    marks = {mark_of(piece.text) for tree in trees for piece in read_pieces(tree)}
    for package in PACKAGES:
        with tempfile.TemporaryDirectory(prefix="lodestone-train-") as scratch:
            stripped = Path(scratch) / "tree"
            strip_tree(corpora.ROOT / package.name / package.folder, stripped)
            marks |= {mark_of(piece.text) for piece in read_pieces(stripped)}
    return frozenset(marks)


def new_model(base: Path, seed: int) -> CrossEncoder:
    """Returns a cross-encoder with the weights of a model of vectors; what scores is random.

    Its scores are logits: a sigmoid would make the best ones equal.
    """
    torch.manual_seed(seed)
    model: CrossEncoder = CrossEncoder(
        str(base),
        num_labels=1,
        max_length=MAX_TOKENS,
        activation_fn=torch.nn.Identity(),
        device="cpu",
        local_files_only=True,
    )
    return model


def train(
    model: CrossEncoder, examples: Iterable[Example], options: Options
) -> Iterator[tuple[int, float]]:
    """Trains in place; yields the step and its loss.

    Steps shrink along the share of questions, or of the time where that runs out earlier.
    """
    network: Any = model[0].auto_model
    freeze(network, options.frozen)
    chance = random.Random(options.seed)
    torch.manual_seed(options.seed)
    learnt = [each for each in examples if each.wrong]
    chance.shuffle(learnt)
    learnt = learnt[: options.lists]
    texts = [each.answer for each in learnt]
    weights = [each for each in network.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=options.rate, weight_decay=0.01)
    started = time.monotonic()
    network.train()
    for step, first in enumerate(range(0, len(learnt), _LISTS_A_STEP)):
        spent = (time.monotonic() - started) / (60 * options.minutes)
        if spent >= 1:
            break
        done = max(first / len(learnt), spent)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1.0, (done + 0.005) / _WARM_SHARE, (1 - done))
        some = learnt[first : first + _LISTS_A_STEP]
        pairs = [pair for each in some for pair in _list_of(each, texts, options.wrong, chance)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
            scores = scores_of(model, pairs)
        loss = loss_of(scores.float().view(len(some), -1), options.loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, _CLIP)
        optimizer.step()
        yield step, loss.item()
    network.eval()


def freeze(network: Any, layers: int) -> None:
    """Has the vectors of words, and so many layers above them, stay as they are."""
    still = [network.bert.embeddings, *network.bert.encoder.layer[:layers]]
    for module in still:
        for weight in module.parameters():
            weight.requires_grad = False


def loss_of(scores: torch.Tensor, kind: str) -> torch.Tensor:
    """Returns the loss of lists, (questions, texts), whose first text is the answer.

    `lists` is the softmax over each list, the localized contrastive loss of Gao, Dai, Callan,
    "Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline" (2021), as all wrong
    texts come from what a search finds first. `pairs` is the cross entropy of each pair by itself,
    of Nogueira, Cho, "Passage Re-ranking with BERT" (2019), with answers weighed as all others.
    """
    answers = torch.zeros(scores.shape, dtype=torch.float32)
    answers[:, 0] = 1.0
    if kind == "lists":
        return torch.nn.functional.cross_entropy(scores, answers)
    weight = torch.tensor(scores.shape[1] - 1.0)
    return torch.nn.functional.binary_cross_entropy_with_logits(scores, answers, pos_weight=weight)


def scores_of(model: CrossEncoder, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Returns the scores of pairs of question and text; those of like length run together."""
    network: Any = model[0].auto_model
    tokenizer: Any = model.tokenizer
    encoded = tokenizer(list(pairs), truncation="longest_first", max_length=MAX_TOKENS)
    order = sorted(range(len(pairs)), key=lambda at: len(encoded["input_ids"][at]))
    parts = []
    for first in range(0, len(order), _CHUNK):
        chunk = order[first : first + _CHUNK]
        rows = {name: [encoded[name][at] for at in chunk] for name in encoded}
        padded = tokenizer.pad(rows, return_tensors="pt")
        parts.append(network(**padded).logits[:, 0])
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[back]


def judge(model: CrossEncoder, examples: Sequence[Example], options: Options) -> dict[str, float]:
    """Returns the mean inverted place of answers that a search finds, by several orders.

    `blended` is the order of both arms and that of the reranker, as search joins them.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for each in examples:
        pairs = [(each.query, text) for text in each.near]
        with (
            torch.inference_mode(),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16),
        ):
            scores = scores_of(model, pairs).float().tolist()
        reranked = _places(scores)
        blended = blended_order(
            [place + 1 for place in reranked], DEFAULTS.rerank_share, DEFAULTS.rerank_smoothing
        )
        for name, place in (
            ("dense", each.dense_place),
            ("fused", each.place),
            ("reranker", reranked[each.place]),
            ("blended", blended.index(each.place)),
        ):
            places[name].append(place)
            places[f"{name}, {each.kind}"].append(place)
    return {name: round(mean(1 / (1 + at) for at in own), 4) for name, own in places.items()}


def _places(scores: Sequence[float]) -> list[int]:
    """Returns the place of each, from 0, the largest first; equal ones stay in order."""
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    places = [0] * len(scores)
    for place, at in enumerate(order):
        places[at] = place
    return places


def _list_of(
    example: Example, texts: Sequence[str], wrong: int, chance: random.Random
) -> list[tuple[str, str]]:
    """Returns the answer's pair, then wrong ones: the last of them is from anywhere."""
    near = chance.sample(example.wrong, min(wrong - 1, len(example.wrong)))
    far: list[str] = []
    while len(near) + len(far) < wrong:
        text = chance.choice(texts)
        far += [text] if text != example.answer else []
    return [(example.query, text) for text in (example.answer, *near, *far)]


def main() -> int:
    """Trains, tells how it goes, and writes the folder of the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=OUT)
    for name, value in asdict(Options()).items():
        if isinstance(value, bool):
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=value)
        else:
            parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    options = Options(**arguments)
    base = base_folder()
    foreign = foreign_marks()
    say(f"{len(foreign)} nodes are not trained on")
    asked = gather(list(map(folder_of, HELD_OUT)), base, options, foreign)
    held_out = [each for each in asked if each.place >= 0]
    random.Random(options.seed).shuffle(held_out)
    held_out = held_out[:_ASKED_OF_HELD_OUT]
    examples = gather(list(map(folder_of, TRAINED_ON)), base, options, foreign)
    say(f"{len(examples)} questions of {len(TRAINED_ON)} packages")
    model = new_model(base, options.seed)
    started = time.monotonic()
    losses: list[float] = []
    for step, loss in train(model, examples, options):
        losses.append(loss)
        if step % _STEPS_TOLD == 0:
            recent = mean(losses[-_STEPS_TOLD:])
            say(f"step {step}: loss {recent:.3f}, {time.monotonic() - started:.0f} s")
    seconds = time.monotonic() - started
    judged = judge(model, held_out, options)
    save(model, out)
    figures = {
        "options": asdict(options),
        "learnt": min(_LISTS_A_STEP * len(losses), len(examples)),
        "seconds": round(seconds),
        "asked": len(held_out),
        "mrr": judged,
    }
    (out / "training.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def save(model: CrossEncoder, folder: Path) -> None:
    """Writes a model to a folder, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder), create_model_card=False)


def say(text: str) -> None:
    """Tells how far it is, beside the results."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
