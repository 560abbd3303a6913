"""The bundled model on ONNX Runtime, as fastembed and text-embeddings-inference run it on a CPU.

The same weights, exported by torch to float32; batches of 32 texts of like lengths, mean pooling
over the tokens and vectors of length one, as the library does. It is no dependency of the services:
`make bench-embed` puts what it takes into `build/onnx`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.embed.model import Vectors

PACKAGES = Path("build/onnx")
_BATCH = 32
_INPUTS = ("input_ids", "attention_mask")


def open_encoder(source: Path, folder: Path) -> Callable[[Sequence[str]], Vectors]:
    """Exports the model of a folder of sentence-transformers into `folder`; returns its encoder.

    The encoder takes texts and returns float32 vectors, one row each.
    """
    if not PACKAGES.is_dir():
        raise SystemExit(f"{PACKAGES} is missing: make bench-embed installs it.")
    sys.path.append(str(PACKAGES.resolve()))
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    target = folder / "model.onnx"
    _export(model[0].auto_model, target)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    tokenizer, most = model.tokenizer, model.max_seq_length

    def encode(texts: Sequence[str]) -> Vectors:
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
        rows: list[Vectors] = []
        for start in range(0, len(texts), _BATCH):
            part = order[start : start + _BATCH]
            tokens = tokenizer(
                [texts[at] for at in part],
                padding=True, truncation=True, max_length=most, return_tensors="np",
            )  # fmt: skip
            mask = tokens["attention_mask"]
            (states,) = session.run(None, {name: tokens[name] for name in _INPUTS})
            pooled = np.einsum("btd,bt->bd", states, mask.astype(np.float32))
            rows.extend(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
        vectors: Vectors = np.stack(rows)[np.argsort(order)]
        return vectors

    return encode


def _export(model: Any, target: Path) -> None:
    """Writes the transformer alone, for any number of texts and tokens."""
    import torch

    class States(torch.nn.Module):
        """Has the states of all tokens as the only output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            found = self.model(input_ids=input_ids, attention_mask=attention_mask)
            states: torch.Tensor = found.last_hidden_state
            return states

    texts, tokens = torch.export.Dim("texts"), torch.export.Dim("tokens", max=512)
    shape = {0: texts, 1: tokens}
    # Two tensors: an export takes one that is passed twice for one input.
    example = (torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.long))
    torch.onnx.export(
        States().eval(), example, target, dynamo=True, verbose=False,
        input_names=list(_INPUTS), dynamic_shapes=(shape, shape),
    )  # fmt: skip
