"""Stacked bars over time, as HTML with SVG in it, without scripts. Pure: numbers in, text out, escaped.

Positions are percentages, so that a chart is as wide as there is room and its text keeps its size. What it shows is also said in
words for those who do not see it, and each bar says its own when it is pointed at.
"""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from agent.escaping import printable


class Kind(NamedTuple):
    """One of the colours: its class in the style sheet, and what it stands for."""

    css: str
    name: str


class Bar(NamedTuple):
    """A bar: a value, zero or more, for each kind; where it is on the axis, and what it says."""

    values: Sequence[float]
    at: str
    says: str


class Chart(NamedTuple):
    """Bars from left to right. `highest` is where the scale ends, and `scale` says a value on it."""

    name: str
    title: str
    description: str
    kinds: Sequence[Kind]
    bars: Sequence[Bar]
    highest: float
    scale: Callable[[float], str]


def ceiling(value: float) -> float:
    """Return a round number that is not below a value, and whose half is whole: 2, 4, 6, 8, 10, 20, 30 and so on."""
    power = 1.0
    while 10 * power < value:
        power *= 10
    return power * next(step for step in range(1, 11) if step * power >= value and step * power % 2 == 0)


def figure(chart: Chart) -> Iterator[str]:
    """Yield a chart with its scale, axis and key."""
    scale = "".join(f"<span>{text(chart.scale(chart.highest * part))}</span>" for part in (1, 0.5, 0))
    axis = "".join(f"<span>{text(bar.at)}</span>" for bar in _ends_and_middle(chart.bars))
    key = "".join(f'<li class="{kind.css}">{text(kind.name)}</li>' for kind in chart.kinds)
    yield f'<figure class="chart"><div class="scale" aria-hidden="true">{scale}</div>'
    yield "".join(_svg(chart))
    yield f'<div class="axis" aria-hidden="true">{axis}</div><figcaption><ul class="key">{key}</ul></figcaption></figure>'


def _svg(chart: Chart) -> Iterator[str]:
    name = escape(chart.name)
    yield f'<svg role="img" aria-labelledby="{name}-title {name}-desc">'
    yield f'<title id="{name}-title">{text(chart.title)}</title><desc id="{name}-desc">{text(chart.description)}</desc>'
    yield from (f'<line class="grid" x1="0" x2="100%" y1="{y}%" y2="{y}%"/>' for y in (0, 50, 100))
    width = 100 / max(len(chart.bars), 1)
    for index, bar in enumerate(chart.bars):
        if any(bar.values):
            yield f"<g><title>{text(bar.says)}</title>{''.join(_rects(chart, bar, width * index, width))}</g>"
    yield "</svg>"


def _rects(chart: Chart, bar: Bar, left: float, width: float) -> Iterator[str]:
    """Yield the parts of a bar, the first kind at the bottom, with a tenth of its width free on each side."""
    top = 100.0
    for kind, value in zip(chart.kinds, bar.values, strict=True):
        if value:
            height = 100 * value / chart.highest
            top -= height
            place = f'x="{left + width / 10:.3f}%" y="{top:.3f}%" width="{width * 0.8:.3f}%" height="{height:.3f}%"'
            yield f'<rect class="{kind.css}" {place}/>'


def _ends_and_middle(bars: Sequence[Bar]) -> list[Bar]:
    """Return the bars that the axis names: at most three."""
    return list(bars) if len(bars) <= 3 else [bars[0], bars[len(bars) // 2], bars[-1]]


def text(value: str) -> str:
    """Return text from anywhere as HTML that shows it, and does nothing else."""
    return escape(printable(value))
