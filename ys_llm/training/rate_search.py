"""The learning rate of each contender by the same small search: halves and doubles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_MOST_STEPS = 2  # beyond the first three rates


@dataclass(frozen=True)
class RateSearch:
    """The best rate, and the bits per byte of each rate that was tried."""

    rate: float
    tried: Mapping[float, float]

    @property
    def text(self) -> str:
        """What was found, and whether a better rate may lie beyond what was tried."""
        least, most = min(self.tried), max(self.tried)
        end = "" if least < self.rate < most else ", and at the end of what was tried"
        return (
            f"learning rate {self.rate:g}, the best of {len(self.tried)} from {least:g} to "
            f"{most:g}{end}"
        )


def search_rate(score: Callable[[float], float], rate: float) -> RateSearch:
    """Try half of `rate`, `rate` and twice `rate`; where the best is at an end, go on from there.

    `score` trains with a rate and returns bits per byte, infinite where that diverges.
    """
    tried = {one: score(one) for one in (rate / 2, rate, 2 * rate)}
    for _ in range(_MOST_STEPS):
        best = _best(tried)
        if min(tried) < best < max(tried):
            break
        beyond = best / 2 if best == min(tried) else 2 * best
        tried[beyond] = score(beyond)
    return RateSearch(_best(tried), tried)


def _best(tried: Mapping[float, float]) -> float:
    return min(tried, key=lambda rate: tried[rate])
