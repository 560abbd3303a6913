"""Expressions that panels share."""

from __future__ import annotations

from deploy.monitoring.dashboards.layout import INSTANCE, RATE


def quantile(share: float, histogram: str, by: str = "", matchers: str = INSTANCE) -> str:
    """Returns a quantile of a histogram, one for each value of the labels `by`."""
    labels = f"{by}, le" if by else "le"
    inner = f"sum by ({labels}) (rate({histogram}_bucket{{{matchers}}}{RATE}))"
    return f"histogram_quantile({share}, {inner})"


def rate(metric: str, by: str, matchers: str = INSTANCE) -> str:
    """Returns a counter's growth each second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{matchers}}}{RATE}))"
