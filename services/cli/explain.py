"""`lodestone search --explain`: why each hit stands where it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lodestone.indexer.v1 import search_service_pb2 as search_pb2

_SHOWN_DIGITS = 12


def explanation_json(explanation: search_pb2.ExplainHitResponse) -> dict[str, object]:
    """Returns an explanation as JSON."""
    return {
        "rank": explanation.rank,
        "score": explanation.hit.score,
        "fused_score": explanation.fused_score,
        "arms_score": explanation.arms_score,
        "outline_factor": explanation.outline_factor,
        "definition": explanation.definition,
        "pooling_factor": explanation.pooling_factor,
        "arms": {item.arm: {"rank": item.rank, "score": item.score} for item in explanation.arms},
        "priors": dict(explanation.priors),
        "rerank": _rerank_json(explanation),
        "run": explanation.index_run,
        "model_fingerprint": explanation.model_fingerprint,
        "file_digest": explanation.hit.file_digest.hex(),
        "age_seconds": explanation.age.ToNanoseconds() / 1e9,
    }


def _rerank_json(explanation: search_pb2.ExplainHitResponse) -> dict[str, object] | None:
    if not explanation.HasField("rerank"):
        return None
    rerank = explanation.rerank
    return {"rank": rerank.rank, "score": rerank.score, "rank_before": rerank.rank_before}


def print_explanation(explanation: search_pb2.ExplainHitResponse) -> None:
    """Prints an explanation in a few lines."""
    arms = ", ".join(
        f"{item.arm} {item.rank} of its list ({item.score:.4g})"
        if item.rank
        else f"{item.arm} did not find it"
        for item in explanation.arms
    )
    click.echo(f"       arms    {arms}; fused {explanation.fused_score:.5f}")
    click.echo(
        f"       fused   (arms {explanation.arms_score:.4g} x{explanation.outline_factor:.3g} "
        f"+ definition {explanation.definition:.4g}) x{explanation.pooling_factor:.3g}"
    )
    priors = ", ".join(
        f"{name} x{factor:.3g}" for name, factor in sorted(explanation.priors.items())
    )
    click.echo(f"       priors  {priors or 'none'}")
    if explanation.HasField("rerank"):
        rerank = explanation.rerank
        click.echo(
            f"       rerank  {rerank.rank} of its list ({rerank.score:.4g}), "
            f"{rerank.rank_before} before it"
        )
    run = explanation.index_run.rpartition("/")[2] or "an earlier run's cache"
    click.echo(
        f"       from    {run}, model {explanation.model_fingerprint[:_SHOWN_DIGITS]}, "
        f"file {explanation.hit.file_digest.hex()[:_SHOWN_DIGITS]}, "
        f"{explanation.age.ToSeconds():,} s ago"
    )
