"""Learning curves of several runs as SVG, drawn in the colours of the page around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

COLOURS = 6  # classes s0 to s5 of the page; more configurations begin again
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 84, 10, 28  # of the panel: room for numbers and names
_SHOWN_FROM = 0.1  # of the longest run: before that the loss falls too far for the rest to be seen
_TICKS = 5
_LINE = 13  # least distance between two names

Axis = Literal["tokens", "seconds", "FLOPs"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One run of a configuration: at each moment what it had used of each axis, and `values`."""

    configuration: str
    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    flops: tuple[float, ...]
    values: tuple[float, ...]

    def points(self, axis: Axis) -> list[Point]:
        """The curve over one axis."""
        used = {"tokens": self.tokens, "seconds": self.seconds, "FLOPs": self.flops}[axis]
        return list(zip(used, self.values, strict=True))


@dataclass(frozen=True)
class _Scale:
    """Numbers from `low` to `high`, drawn from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        """Where a number is drawn."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> Iterator[float]:
        """A few round numbers."""
        rough = ((self.high - self.low) or 1.0) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
        number = math.ceil(self.low / step)
        while number * step <= self.high:
            yield number * step
            number += 1


def chart(curves: Sequence[Curve], names: Sequence[str], *, axis: Axis) -> str:
    """The curves of all runs, those of one configuration in its colour, its name at their end."""
    shown = {curve: _shown(curves, curve, axis) for curve in curves}
    across = [x for points in shown.values() for x, _ in points]
    up = [y for points in shown.values() for _, y in points]
    if not across:
        return "<p>No loss was recorded.</p>"
    x_scale = _Scale(0.0, max(across), _LEFT, _WIDTH - _RIGHT)
    y_scale = _Scale(min(up), max(up), _HEIGHT - _BOTTOM, _TOP)
    colour = {name: f"s{index % COLOURS}" for index, name in enumerate(names)}
    return "".join(
        [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss against {axis}">',
            *_grid(x_scale, y_scale),
            *(
                _line(points, x_scale, y_scale, colour[curve.configuration])
                for curve, points in shown.items()
            ),
            *_names(shown, y_scale, colour),
            "</svg>",
        ]
    )


def _shown(curves: Sequence[Curve], curve: Curve, axis: Axis) -> list[Point]:
    longest = max((x for one in curves for x, _ in one.points(axis)), default=0.0)
    return [point for point in curve.points(axis) if point[0] >= _SHOWN_FROM * longest]


def _grid(x_scale: _Scale, y_scale: _Scale) -> Iterator[str]:
    line, bottom = 'stroke="var(--line)" stroke-width="1"', _HEIGHT - _BOTTOM
    yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" {line}/>'
    for value in y_scale.ticks():
        y = y_scale.at(value)
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {line}/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    for value in x_scale.ticks():
        x = x_scale.at(value)
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short(value)}</text>'


def _line(points: Sequence[Point], x_scale: _Scale, y_scale: _Scale, colour: str) -> str:
    places = [(x_scale.at(x), y_scale.at(y)) for x, y in points]
    if len(places) == 1:
        x, y = places[0]
        return f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3" fill="currentColor"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = 'fill="none" stroke="currentColor" stroke-width="1.5" stroke-linejoin="round"'
    return f'<polyline class="{colour}" points="{path}" {style}/>'


def _names(
    shown: dict[Curve, list[Point]], y_scale: _Scale, colour: dict[str, str]
) -> Iterator[str]:
    """The name of each configuration at the mean of its ends, moved apart where they would meet."""
    ends: dict[str, list[float]] = {}
    for curve, points in shown.items():
        if points:
            ends.setdefault(curve.configuration, []).append(y_scale.at(points[-1][1]))
    lowest, x = float(_HEIGHT - _BOTTOM + _LINE), _WIDTH - _RIGHT + 6
    placed = sorted(((sum(ys) / len(ys), name) for name, ys in ends.items()), reverse=True)
    for y, name in placed:
        lowest = min(y + 4, lowest - _LINE)
        text = escape(name if len(name) <= 14 else f"{name[:13]}…")
        yield f'<text class="{colour[name]}" x="{x}" y="{lowest:.1f}">{text}</text>'


def short(value: float) -> str:
    """A number with k, M, G or a power of ten."""
    if value == 0:
        return "0"
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if 10**power <= abs(value) < 10 ** (power + 3):
            return f"{value / 10**power:.3g}{letter}"
    return f"{value:.3g}".replace("e+", "e")
