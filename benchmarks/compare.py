"""Two result files of one class of processors: which figures fell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.targets import Target, judge
from ys_llm.errors import UserError

TOLERATED = 0.05  # a smaller change of a median is not told from noise


@dataclass(frozen=True)
class Change:
    """One figure in both files."""

    old: Target
    new: Target

    @property
    def gain(self) -> float:
        """New over old, or old over new where less is better: below 1, the figure fell."""
        pair = (self.old, self.new) if self.new.at_most else (self.new, self.old)
        return pair[0].figure / pair[1].figure

    @property
    def fell(self) -> bool:
        """Worse by more than what is tolerated, and in every round worse than in any before."""
        if self.gain >= 1 - TOLERATED:
            return False
        if self.new.at_most:
            return min(self.new.values) > max(self.old.values)
        return max(self.new.values) < min(self.old.values)

    def line(self) -> str:
        """Both figures with their spreads."""
        old, new = (f"{side.figure:.3g} ({side.spread})" for side in (self.old, self.new))
        verdict = ", fell" if self.fell else ""
        return f"{self.new.key}: {old} -> {new} {self.new.unit}, gain {self.gain:.2f}{verdict}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Every figure that both reports give.

    UserError where they are of different classes or numbers of threads.
    """
    for fact in ("class", "threads"):
        if old[fact] != new[fact]:
            raise UserError(
                f"{fact} {old[fact]} and {fact} {new[fact]} cannot be compared",
                f"Name two files of the same {fact}",
            )
    before = {target.key: target for target in judge(old) if target.values}
    after = {target.key: target for target in judge(new) if target.values}
    return [Change(before[key], after[key]) for key in before if key in after]
