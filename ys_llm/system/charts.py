"""Charts as SVG, drawn in the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from ys_llm.system.page import COLOURS

Point = tuple[float, float]
Kind = Literal["linear", "zero", "log"]
_WIDTH, _HEIGHT = 360, 240
_LEFT, _TOP, _BOTTOM = 44, 10, 28  # of the panel
_RIGHT, _RIGHT_OF_NAMES = 12, 84
_LINE = 13  # least distance between two names
_TICKS = 5
_LONGEST_NAME = 14
_MOST_LOG_TICKS = 7
_GRID = 'stroke="var(--line)" stroke-width="1"'


@dataclass(frozen=True)
class Series:
    """A line; those of one name share it. `band` is (x, low, high) of what the line is the mean of.

    `is_dotted` marks each point, whose value is then shown under the pointer.
    """

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    band: tuple[tuple[float, float, float], ...] = ()
    is_dotted: bool = False


@dataclass(frozen=True)
class Level:
    """A value to compare with, as a dashed line over the whole width."""

    name: str
    value: float


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high`, drawn from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a number is drawn."""
        low, high, value = (self._linear(number) for number in (self.low, self.high, value))
        share = (value - low) / ((high - low) or 1.0)
        return self.begin + share * (self.end - self.begin)

    def _linear(self, number: float) -> float:
        return math.log(max(number, 1e-300)) if self.is_log else number

    def ticks(self) -> list[float]:
        """A few round numbers."""
        found = list(self._log_ticks()) if self.is_log else []
        return found if len(found) > 1 else list(self._linear_ticks())

    def _linear_ticks(self) -> Iterator[float]:
        rough = ((self.high - self.low) or 1.0) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
        number = math.ceil(self.low / step)
        while number * step <= self.high:
            yield number * step
            number += 1

    def _log_ticks(self) -> list[float]:
        """1, 2 and 5 of each power of ten, or fewer of them."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        powers = [10.0**power for power in range(first, last + 1)]
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [d * p for p in powers for d in digits if self.low <= d * p <= self.high]
            if len(found) <= _MOST_LOG_TICKS:
                return found
        return found[:: -(-len(found) // _MOST_LOG_TICKS)]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    axis: str,
    kind: Kind = "linear",
    levels: Sequence[Level] = (),
) -> str:
    """Lines over an axis, with their names at their ends where there are several.

    The vertical scale is logarithmic where `kind` is "log" (what is not positive is left out), and
    begins at 0 where it is "zero". Values that are not finite are left out.
    """
    series = [_drawable(one, kind) for one in series]
    levels = [level for level in levels if _is_drawable(level.value, kind)]
    across = [x for one in series for x, _ in one.points]
    if not across:
        return "<p>Nothing was recorded.</p>"
    is_named = len({one.name for one in series}) + len(levels) > 1
    right = _WIDTH - (_RIGHT_OF_NAMES if is_named else _RIGHT)
    x_scale = Scale(0.0, max(across), _LEFT, right)
    y_scale = _y_scale(series, levels, kind)
    return "".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escape(_description(series, levels, title, axis))}">',
            *_grid(x_scale, y_scale),
            *(_level(level, x_scale, y_scale) for level in levels),
            *(part for one in series for part in _drawn(one, x_scale, y_scale, axis)),
            *(_names(series, levels, y_scale, right) if is_named else ()),
            "</svg>",
        ]
    )


def _drawable(series: Series, kind: Kind) -> Series:
    points = tuple(point for point in series.points if _is_drawable(point[1], kind))
    band = tuple(one for one in series.band if _is_drawable(one[1], kind) and math.isfinite(one[2]))
    return Series(series.name, points, series.colour, band, series.is_dotted)


def _is_drawable(value: float, kind: Kind) -> bool:
    return math.isfinite(value) and (kind != "log" or value > 0)


def _y_scale(series: Sequence[Series], levels: Sequence[Level], kind: Kind) -> Scale:
    up = [y for one in series for _, y in one.points]
    up += [y for one in series for _, *ends in one.band for y in ends]
    up += [level.value for level in levels]
    low = 0.0 if kind == "zero" else min(up)
    return Scale(low, max(up), _HEIGHT - _BOTTOM, _TOP, kind == "log")


def _description(series: Sequence[Series], levels: Sequence[Level], title: str, axis: str) -> str:
    """The chart in words, for those who cannot see it."""
    lines = [
        f"{one.name}: from {one.points[0][1]:.4g} at {axis} {short(one.points[0][0])} "
        f"to {one.points[-1][1]:.4g} at {axis} {short(one.points[-1][0])}"
        for one in series
        if one.points
    ]
    lines += [f"{level.name}: {level.value:.4g}" for level in levels]
    return f"{title}. {'; '.join(lines)}."


def _grid(x_scale: Scale, y_scale: Scale) -> Iterator[str]:
    left, right, bottom = x_scale.begin, x_scale.end, y_scale.begin
    yield f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" {_GRID}/>'
    for value in y_scale.ticks():
        y = y_scale.at(value)
        yield f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" {_GRID}/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
    for value in x_scale.ticks():
        x = x_scale.at(value)
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short(value)}</text>'


def _tick(value: float) -> str:
    return short(value) if value == 0 or not 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def _level(level: Level, x_scale: Scale, y_scale: Scale) -> str:
    y, dashed = y_scale.at(level.value), 'stroke="var(--soft)" stroke-dasharray="4 3"'
    return f'<line x1="{x_scale.begin}" x2="{x_scale.end}" y1="{y:.1f}" y2="{y:.1f}" {dashed}/>'


def _drawn(series: Series, x_scale: Scale, y_scale: Scale, axis: str) -> Iterator[str]:
    """Band, line and dots."""
    colour = f"s{series.colour % COLOURS}"
    places = [(x_scale.at(x), y_scale.at(y)) for x, y in series.points]
    if series.band:
        upper = [f"{x_scale.at(x):.1f},{y_scale.at(high):.1f}" for x, _, high in series.band]
        lower = [f"{x_scale.at(x):.1f},{y_scale.at(low):.1f}" for x, low, _ in series.band]
        area = " ".join([*upper, *reversed(lower)])
        yield f'<polygon class="{colour}" points="{area}" fill="currentColor" opacity=".2"/>'
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        style = 'fill="none" stroke="currentColor" stroke-width="1.5" stroke-linejoin="round"'
        yield f'<polyline class="{colour}" points="{path}" {style}/>'
    if series.is_dotted or len(places) == 1:
        for (x, y), (at, value) in zip(places, series.points, strict=True):
            dot = f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3" fill="currentColor">'
            shown = escape(f"{series.name}, {axis} {at:,g}: {value:.4g}")
            yield f"{dot}<title>{shown}</title></circle>"


def _names(
    series: Sequence[Series], levels: Sequence[Level], y_scale: Scale, right: float
) -> Iterator[str]:
    """Each name at the mean of the ends of its lines, moved apart where they would meet."""
    ends: dict[tuple[str, str], list[float]] = {}
    for one in series:
        if one.points:
            at = y_scale.at(one.points[-1][1])
            ends.setdefault((one.name, f' class="s{one.colour % COLOURS}"'), []).append(at)
    for level in levels:
        ends.setdefault((level.name, ""), []).append(y_scale.at(level.value))
    placed = sorted(((sum(ys) / len(ys), *name) for name, ys in ends.items()), reverse=True)
    lowest = float(_HEIGHT - _BOTTOM + _LINE)
    for y, name, colour in placed:
        lowest = min(y + 4, lowest - _LINE)
        shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        yield f'<text{colour} x="{right + 6}" y="{lowest:.1f}">{escape(shown)}</text>'


def histogram(counts: Sequence[int], edges: Sequence[float], *, title: str) -> str:
    """Bars of these counts, each from its edge to the next; the axis has the edges as its marks."""
    highest = max(counts, default=0) or 1
    width, height, bottom = 240, 64, 16
    step = width / max(1, len(counts))
    bars = "".join(
        f'<rect class="s0" x="{index * step + 0.5:.1f}" width="{step - 1:.1f}" '
        f'y="{height * (1 - count / highest):.1f}" height="{height * count / highest:.1f}" '
        f'fill="currentColor"><title>{short(edges[index])} to {short(edges[index + 1])}: '
        f"{count:,}</title></rect>"
        for index, count in enumerate(counts)
        if count
    )
    marks = "".join(
        f'<text x="{index * step:.1f}" y="{height + 12}" text-anchor="'
        f'{"start" if index == 0 else "end" if index == len(counts) else "middle"}">'
        f"{short(edge)}</text>"
        for index, edge in enumerate(edges)
        if index % max(1, len(counts) // 3) == 0
    )
    line = f'<line x1="0" x2="{width}" y1="{height}" y2="{height}" {_GRID}/>'
    label = f'role="img" aria-label="{escape(title)}"'
    return f'<svg viewBox="0 0 {width} {height + bottom}" {label}>{bars}{line}{marks}</svg>'


def short(value: float) -> str:
    """A number with k, M, G or a power of ten."""
    if value == 0:
        return "0"
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if 10**power <= abs(value) < 10 ** (power + 3):
            return f"{value / 10**power:.3g}{letter}"
    return f"{value:.3g}".replace("e+", "e")
