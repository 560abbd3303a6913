"""Draws grouped bars as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 760, 320, 40, 40, 70
_LEGEND_COLUMNS = 3
_COLOURS = ("#9aa5b1", "#7b8794", "#4c9aff", "#2f6fd6", "#1a936f", "#c2571a")


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a picture of values from 0 to 1, one group of bars a name."""
    names = list(next(iter(groups.values())))
    span = (_WIDTH - _LEFT - 10) / len(groups)
    bar = span * 0.85 / len(names)
    style = 'font-family="sans-serif" font-size="11"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {style}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for tenths in range(0, 11, 2):
        y = _y(tenths / 10)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y}" y2="{y}" stroke="#dddddd"/>')
        parts.append(f'<text x="10" y="{y + 4}">{tenths / 10:.1f}</text>')
    for place, (group, values) in enumerate(groups.items()):
        left = _LEFT + place * span
        for number, name in enumerate(names):
            x, y = left + number * bar, _y(values[name])
            height = _y(0) - y
            colour = _COLOURS[number % len(_COLOURS)]
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar - 2:.1f}" height="{height:.1f}" '
                f'fill="{colour}"><title>{escape(f"{group}, {name}: {values[name]:.3f}")}</title>'
                "</rect>"
            )
            parts.append(
                f'<text x="{x:.1f}" y="{y - 3:.1f}" font-size="9">{values[name]:.2f}</text>'
            )
        parts.append(f'<text x="{left:.1f}" y="{_y(0) + 15:.1f}">{escape(group)}</text>')
    for number, name in enumerate(names):
        row, column = divmod(number, _LEGEND_COLUMNS)
        x, y = _LEFT + column * (_WIDTH - _LEFT) / _LEGEND_COLUMNS, _HEIGHT - 28 + 16 * row
        parts.append(
            f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" '
            f'fill="{_COLOURS[number % len(_COLOURS)]}"/>'
        )
        parts.append(f'<text x="{x + 14:.0f}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _y(value: float) -> float:
    return round(_TOP + (1 - value) * (_HEIGHT - _TOP - _BOTTOM), 1)
