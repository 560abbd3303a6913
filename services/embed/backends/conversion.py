"""The child process that converts a sentence-transformers model to OpenVINO, once.

Usage: python -m services.embed.backends.conversion PARENT SOURCE_FOLDER TARGET_FOLDER [reranker]

It ends with the process PARENT, whatever ends that. Exit codes: 0 converted, 1 not, 6 no room on
the disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from services.embed.backends import cross_encoder, pipeline
from services.embed.backends.converted import (
    GRAPH,
    RERANKER,
    TOKENIZER,
    ConvertedFacts,
    write_facts,
)
from services.embed.backends.openvino import encoder_of, import_openvino
from services.embed.backends.padding import pad
from services.embed.backends.suitability import UnsupportedModelError
from services.embed.canary import CANARY_TEXTS, agreement, least_agreement
from services.embed.model import EncodedText, Truncation
from services.runtime.durable import flush_file, flush_folder
from services.runtime.exits import ExitCode
from services.runtime.parents import end_with_parent

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from services.embed.model import Vectors

_EXAMPLE_TOKENS = 8
_RANDOM = "?" * 8
"""What `tempfile` puts behind a prefix."""


def main(arguments: list[str]) -> int:
    """Converts; returns the exit code, and says why on the last line of standard error."""
    if not end_with_parent(int(arguments[0])):
        return ExitCode.OK  # nobody waits for it
    source, target = map(Path, arguments[1:3])
    lock = target.with_suffix(".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a second start waits here and finds the work done
        if target.is_dir():
            return 0
        try:
            _convert_atomically(source, target, reranks=RERANKER in arguments[3:])
        except UnsupportedModelError as error:
            sys.stderr.write(f"\n{error}\n")
            return ExitCode.FAILED
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                return ExitCode.DISK_FULL
            raise
    return ExitCode.OK


def _convert_atomically(source: Path, target: Path, *, reranks: bool) -> None:
    """Fills a folder under another name and renames it: no half-written one is ever read.

    What a conversion left behind that was killed goes; nobody else fills one of this name now.
    """
    for left in target.parent.glob(f".{target.name}-{_RANDOM}"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as name:
        work = Path(name) / "model"
        work.mkdir()
        (_convert_reranker if reranks else _convert)(source, work)
        for path in work.iterdir():
            flush_file(path)
        flush_folder(work)
        work.rename(target)
        flush_folder(target.parent)


def _convert(source: Path, work: Path) -> None:
    model = pipeline.load_model(source, device="cpu")
    (work / TOKENIZER).write_text(pipeline.tokenizer_json(model))
    token_types = pipeline.uses_token_types(model)
    _write_graph(pipeline.Pipeline(model), work, token_types=token_types)
    canary = _reference_vectors(model)
    identity = pipeline.identity_of(model, source)
    facts = ConvertedFacts(canary.shape[1], token_types, identity)
    _check_graph(work, facts, canary)
    write_facts(work, facts, canary)


def _convert_reranker(source: Path, work: Path) -> None:
    model = cross_encoder.load_cross_encoder(source, device="cpu")
    (work / TOKENIZER).write_text(pipeline.tokenizer_json(model))
    token_types = pipeline.uses_token_types(model)
    _write_graph(cross_encoder.PairPipeline(model), work, token_types=token_types)
    canary = cross_encoder.reference_scores(model)
    identity = cross_encoder.identity_of(model, source)
    facts = ConvertedFacts(1, token_types, identity, scores=True)
    _check_graph(work, facts, canary)
    write_facts(work, facts, canary)


def _check_room(module: torch.nn.Module, work: Path) -> None:
    """Raises OSError when the weights have no room: OpenVINO's own error tells of no disk."""
    place = work / GRAPH
    with place.open("wb") as file:
        size = sum(weights.numel() for weights in module.parameters()) * torch.float32.itemsize
        os.posix_fallocate(file.fileno(), 0, size)
    place.unlink()


def _write_graph(module: torch.nn.Module, work: Path, *, token_types: bool) -> None:
    _check_room(module, work)
    ov = import_openvino()
    ids = torch.ones((2, _EXAMPLE_TOKENS), dtype=torch.int64)
    mask = ids.clone()
    # A mask without padding would be traced as no mask at all.
    mask[1, _EXAMPLE_TOKENS // 2 :] = 0
    example = (ids, mask, torch.zeros_like(ids)) if token_types else (ids, mask)
    with torch.no_grad():
        graph = ov.convert_model(module, example_input=example)
    # Weights stay float32: what precision to compute in is decided where the model runs.
    ov.save_model(graph, str(work / GRAPH), compress_to_fp16=False)


def _reference_vectors(model: SentenceTransformer) -> Vectors:
    """Returns the library's own float32 vectors of the canary texts."""
    vectors: Vectors = model.encode(
        list(CANARY_TEXTS), batch_size=1, normalize_embeddings=True, prompt=""
    )
    return vectors


def _check_graph(work: Path, facts: ConvertedFacts, canary: Vectors) -> None:
    """Runs the graph in float32 as the service will, and compares."""
    compiled = (
        import_openvino()
        .Core()
        .compile_model(str(work / GRAPH), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    tokenizer = encoder_of(work, facts, max_text_chars=1 << 20)
    encoded = tokenizer.encode(CANARY_TEXTS, Truncation.END)
    batch = [item.ids for item in encoded if isinstance(item, EncodedText)]
    result: Any = compiled(pad(batch, token_types=facts.token_types))
    agreed = agreement(result[0], canary, scores=facts.scores)
    if agreed < least_agreement(scores=facts.scores):
        what = "agreement" if facts.scores else "cosine"
        raise UnsupportedModelError(
            f"its converted form disagrees with the original ({what} {agreed:.4f})"
        )


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stderr.flush()
    # Destructors of the libraries' thread pools are no use to a process that is done.
    os._exit(exit_code)
