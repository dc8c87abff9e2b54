"""Two result files of one class of processors: which figures fell, and which are missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.targets import Target, judge
from ys_llm.errors import UserError

TOLERATED = 0.05  # a smaller change of a median is not told from noise


@dataclass(frozen=True)
class Change:
    """One figure of the old file, and what the new one has for it: None where it is missing."""

    old: Target
    new: Target | None

    @property
    def gain(self) -> float:
        """New over old, or old over new where less is better: below 1, the figure fell.

        NaN where it is missing.
        """
        if self.new is None:
            return float("nan")
        pair = (self.old, self.new) if self.new.at_most else (self.new, self.old)
        return pair[0].figure / pair[1].figure

    @property
    def fell(self) -> bool:
        """Worse by more than what is tolerated, and in every round worse than in any before."""
        if self.new is None or self.gain >= 1 - TOLERATED:
            return False
        if self.new.at_most:
            return min(self.new.values) > max(self.old.values)
        return max(self.new.values) < min(self.old.values)

    @property
    def worse(self) -> bool:
        """Whether the new file has nothing as good to show: the figure fell or is missing."""
        return self.new is None or self.fell

    def line(self) -> str:
        """Both figures with their spreads."""
        key, unit = self.old.key, self.old.unit
        if self.new is None:
            return f"{key}: {_with_spread(self.old)} {unit} -> missing"
        verdict = ", fell" if self.fell else ""
        both = f"{_with_spread(self.old)} -> {_with_spread(self.new)}"
        return f"{key}: {both} {unit}, gain {self.gain:.2f}{verdict}"


def _with_spread(target: Target) -> str:
    return f"{target.figure:.3g} ({target.spread})"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every figure that the old report gives.

    UserError where they are of different classes or numbers of threads.
    """
    for fact in ("class", "threads"):
        if old[fact] != new[fact]:
            raise UserError(
                f"{fact} {old[fact]} and {fact} {new[fact]} cannot be compared",
                f"Name two files of the same {fact}",
            )
    after = {target.key: target for target in judge(new) if target.values}
    return [Change(target, after.get(target.key)) for target in judge(old) if target.values]
