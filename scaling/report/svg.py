"""Line charts side by side as an SVG, from plain strings."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _GAP = 250, 210, 52, 34, 46, 14
_INK, _GRID = "#333", "#ddd"


@dataclass(frozen=True, kw_only=True)
class Line:
    """`points` are (x, y); `ranges` (x, low, high) are drawn as bars; a line without a name is not in the legend."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dashes: str = ""
    dots: bool = True
    ranges: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_ticks: Sequence[float]  # from one edge to the other: an axis may fall
    y_ticks: Sequence[float]
    log_x: bool = True
    log_y: bool = False


def ticks(values: Iterable[float], most: int = 6) -> list[float]:
    """Round numbers, at most `most` or one more, from below the least of `values` to above the largest."""
    low, high = min(values := list(values)), max(values)
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    raw = (high - low) / (most - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * size for size in (1, 2, 5, 10) if unit * size >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def drawing(panels: Sequence[Panel]) -> str:
    """The panels in a row over one legend."""
    names = {line.name: line for panel in panels for line in panel.lines if line.name}
    width = len(panels) * (_LEFT + _WIDTH + _GAP) + _GAP
    legend, x, y = [], float(_LEFT), _TOP + _HEIGHT + _BOTTOM
    for name, line in names.items():
        if x > _LEFT and x + 40 + 6.2 * len(name) > width:
            x, y = float(_LEFT), y + 18
        legend.append(f'<path d="M{x} {y}h22" {_stroke(line)}/>{_text(x + 27, y + 4, name)}')
        x += 40 + 6.2 * len(name)
    height = y + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{_INK}"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * (_LEFT + _WIDTH + _GAP) + _LEFT},{_TOP})">{_panel(panel)}</g>')
    return "".join([*parts, *legend]) + "</svg>\n"


def _panel(panel: Panel) -> str:
    def place(value: float, ticks: Sequence[float], log: bool, size: float) -> float:
        low, high = ticks[0], ticks[-1]
        if log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return size * (value - low) / (high - low)

    def x_of(value: float) -> float:
        return round(place(value, panel.x_ticks, panel.log_x, _WIDTH), 1)

    def y_of(value: float) -> float:
        return round(_HEIGHT - place(value, panel.y_ticks, panel.log_y, _HEIGHT), 1)

    parts = [_text(_WIDTH / 2, -14, panel.title, "middle", "bold")]
    for tick in panel.x_ticks:
        parts.append(f'<path d="M{x_of(tick)} 0V{_HEIGHT}" stroke="{_GRID}"/>')
        parts.append(_text(x_of(tick), _HEIGHT + 14, f"{tick:,g}", "middle"))
    for tick in panel.y_ticks:
        parts.append(f'<path d="M0 {y_of(tick)}H{_WIDTH}" stroke="{_GRID}"/>')
        parts.append(_text(-6, y_of(tick) + 4, f"{tick:,g}", "end"))
    parts.append(_text(_WIDTH / 2, _HEIGHT + 30, panel.x_label, "middle"))
    parts.append(
        f'<g transform="translate({-_LEFT + 12},{_HEIGHT / 2}) rotate(-90)">{_text(0, 0, panel.y_label, "middle")}</g>'
    )
    for line in panel.lines:
        places = [(x_of(x), y_of(y)) for x, y in line.points]
        if len(places) > 1:
            parts.append(f'<path d="M{" L".join(f"{x} {y}" for x, y in places)}" {_stroke(line)}/>')
        if line.dots:
            parts += [f'<circle cx="{x}" cy="{y}" r="2.6" fill="{line.color}"/>' for x, y in places]
        for x, low, high in line.ranges:
            parts.append(f'<path d="M{x_of(x)} {y_of(low)}V{y_of(high)}" stroke="{line.color}" stroke-width="1.2"/>')
    return "".join(parts)


def _stroke(line: Line) -> str:
    dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
    return f'fill="none" stroke="{line.color}" stroke-width="1.8"{dashes}'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
