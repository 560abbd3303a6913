"""Attention over texts that lie end to end in one row, without padding."""

from __future__ import annotations

import inspect
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch.nn.attention.varlen import varlen_attn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LEAST_CAPABILITY = (8, 0)
"""Flash attention needs an Ampere GPU or a newer one, and numbers of 16 bits."""


def unsplit(attend: Callable[..., object]) -> dict[str, Any]:
    """Returns what keeps a release's kernel from splitting keys; one without the word never does.

    The word came after torch 2.11.
    """
    return {"num_splits": 1} if "num_splits" in inspect.signature(attend).parameters else {}


_UNSPLIT: Final = unsplit(varlen_attn)


class Segments:
    """Where each text of a row begins and ends."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        # From pinned memory the copy waits for nothing that the device does.
        pinned = device.type == "cuda"
        bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32, pin_memory=pinned)
        torch.cumsum(torch.tensor(lengths), 0, out=bounds[1:])
        self.lengths = list(lengths)
        self.longest = max(lengths)
        self.bounds = bounds.to(device, non_blocking=True)
        """Shape (texts + 1,), int32: the first token of each text, and the end."""

    @classmethod
    def within(cls, bounds: torch.Tensor, longest: int) -> Segments:
        """Returns segments, some of which may be empty, with bounds that lie on the device already.

        `longest` is at least the length of each. Lengths are known on the CPU alone: asking a GPU
        would wait for it.
        """
        segments = cls.__new__(cls)
        segments.lengths = bounds.diff().tolist() if bounds.device.type == "cpu" else []
        segments.longest = longest
        segments.bounds = bounds
        return segments


class Attention(Protocol):
    """Attends within each text; query, key, value and result have shape (tokens, heads, size)."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        """Returns the values that each token attends to."""
        ...


def attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Attends to all texts by one kernel of a GPU.

    The kernel may not split a text's keys: where it does, it decides by the longest text of the
    batch, and a vector would depend on its neighbours.
    """
    bounds, longest = segments.bounds, segments.longest
    result = varlen_attn(query, key, value, bounds, bounds, longest, longest, **_UNSPLIT)
    assert isinstance(result, torch.Tensor)  # it is a pair where more is asked for
    return result


def attend_by_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Attends to neighbours of one length at once, on any device and in any precision."""
    result = torch.empty_like(query)
    start = 0
    for length, run in groupby(filter(None, segments.lengths)):
        end = start + length * len(list(run))
        shape = (-1, length, *query.shape[1:])
        q, k, v = (part[start:end].reshape(shape).transpose(1, 2) for part in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        result[start:end] = attended.transpose(1, 2).flatten(0, 1)
        start = end
    return result


def attention_for(device: torch.device, dtype: torch.dtype) -> Attention | None:
    """Returns how to attend without padding; None where that needs a loop on a GPU."""
    if device.type == "cpu":
        return attend_by_length
    capable = torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY
    return attend_varlen if capable and dtype in {torch.float16, torch.bfloat16} else None
