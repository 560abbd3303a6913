"""Where torch runs models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from services.runtime.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([a-z]?)")


def device_of_choice() -> str:
    """Returns where torch runs models: on a GPU when there is one that it can use.

    Raises RuntimeError when there is one that does not answer: a model that ran on the CPU for it
    would be another one.
    """
    if not torch.cuda.is_available():
        return "cpu"
    capability = torch.cuda.get_device_capability()
    if not has_kernels_for(capability, torch.cuda.get_arch_list()):
        get_logger().warning("gpu_not_supported", capability="{}.{}".format(*capability))
        return "cpu"
    return "cuda"


def has_kernels_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Tells whether a build of torch has code for a GPU, by the names of what it was built for.

    Code of `sm_86` runs on GPUs of 8.6 up to 8.9, of `sm_90a` on 9.0 alone, and `compute_90` is
    compiled for whatever is newer. Names that are not NVIDIA's say nothing of its GPUs.
    """
    for name in architectures:
        match = _ARCHITECTURE.fullmatch(name)
        if match is None:
            return True
        kind, built, exact = match[1], (int(match[2]), int(match[3])), match[4] == "a"
        newer = built < capability and not exact
        if built == capability or (newer and (kind == "compute" or built[0] == capability[0])):
            return True
    return not architectures
