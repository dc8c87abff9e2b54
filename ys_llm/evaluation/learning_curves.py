"""Learning curves of several runs as SVG, drawn in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ys_llm.system.charts import Point, Series, line_chart

_SHOWN_FROM = 0.1  # of the longest run: before that the loss falls too far for the rest to be seen

Axis = Literal["tokens", "seconds", "FLOPs"]


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


def chart(curves: Sequence[Curve], names: Sequence[str], *, axis: Axis) -> str:
    """The curves of all runs, those of one configuration in its colour, its name at their end."""
    longest = max((x for one in curves for x, _ in one.points(axis)), default=0.0)
    series = [
        Series(
            curve.configuration,
            tuple(point for point in curve.points(axis) if point[0] >= _SHOWN_FROM * longest),
            names.index(curve.configuration),
        )
        for curve in curves
    ]
    return line_chart(series, title=f"Loss against {axis}", axis=axis)
