"""The stages of a search, each by settings of the indexer: what every mechanism is worth."""

from __future__ import annotations

from collections.abc import Mapping

Weights = Mapping[str, float]

SHARES = ("natural_dense_share", "code_dense_share", "symbol_dense_share", "path_dense_share")
PRIORS: Mapping[str, Weights] = {
    "pooling": {"dense_pool": 0, "lexical_pool": 0},
    "saturation": {"same_file_factor": 1, "detailed_same_file_factor": 1},
    "definitions": {"symbol_bonus": 0, "mention_bonus": 0},
    "file names": {"subject_bonus": 0, "folder_bonus": 0, "path_bonus": 0},
    "tests": {"test_factor": 1},
    "documents": {"document_factor": 1},
    "examples, vendored": {"aside_factor": 1},
    "old versions": {"superseded_factor": 1},
    "outline": {"outline_factor": 1},
}
"""What switches each prior off."""

_NONE: Weights = {name: value for off in PRIORS.values() for name, value in off.items()}

STAGES: Mapping[str, Weights] = {
    "lexical": {**_NONE, **dict.fromkeys(SHARES, 0)},
    "dense": {**_NONE, **dict.fromkeys(SHARES, 1)},
    "fused": _NONE,
    "fused, spread over files": {
        **_NONE,
        "same_file_factor": 0.2,
        "detailed_same_file_factor": 0.2,
    },
    "fused + priors": {},
}


DETAILS: Mapping[str, Weights] = {
    "weights by kind of question": dict.fromkeys(SHARES, 0.5),
    "coverage of terms": {"coverage_power": 0},
    "candidates by rare terms": {"common_share": 1},
    "limit of pooling": {"pool_limit": 63},
    "whole names": {"symbol_bonus": 0},
    "names in sentences": {"mention_bonus": 0},
    "methods after functions": {"method_factor": 1, "block_factor": 1},
    "first parts": {"later_part_factor": 1},
    "named scopes": {"scope_factor": 1},
    "stems of files": {"subject_bonus": 0},
    "parts of words": {"partial_word_factor": 0},
    "folders": {"folder_bonus": 0},
    "limit of folders": {"folder_limit": 100},
    "whole paths": {"path_bonus": 0},
    "detailed questions": {"detailed_same_file_factor": 0.2, "detail_limit": 100},
}
"""What switches off a part of a prior, or of an arm: no stage is without all of them."""

ABLATIONS: Mapping[str, Weights] = {**PRIORS, **DETAILS}

RERANKED = "fused + priors + reranker"
"""The stage with a cross-encoder over the first hits; it is run where one is given."""

RERANKED_HITS = 30
"""Hits that it scores: three pages of what is counted."""


def without(prior: str) -> Weights:
    """Returns the weights of everything but one prior, or a part of one."""
    return ABLATIONS[prior]


def setting(weights: Weights) -> tuple[str, ...]:
    """Returns weights as the setting `search_weights`."""
    return tuple(f"{name}={value:g}" for name, value in weights.items())
