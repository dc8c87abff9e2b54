"""What may be set for the copy tier."""

from dataclasses import dataclass
from typing import Literal

from ys_llm.config.strict_reader import setting

_MAX_WIDTH = 1 << 20  # as that of a model
_LEAST_SURPRISING = 8  # a window that holds two of the latest tokens


@dataclass(frozen=True)
class CopyConfig:
    """The copy tier: which tokens can be copied."""

    window: int = setting(
        0, "tokens that can be copied; 0 = no copy tier", minimum=0, maximum=_MAX_WIDTH
    )
    width: int = setting(64, "numbers of a key", minimum=1, maximum=_MAX_WIDTH)
    keep: Literal["recent", "surprising"] = setting(
        "recent",
        "recent: the latest tokens; surprising: a quarter of them, and the least expected ones of "
        "the whole document",
    )
    gate: Literal["sentinel", "separate"] = setting(
        "sentinel",
        "how much is copied: sentinel = by what fits, too; separate = by the last state alone",
    )

    def __post_init__(self) -> None:
        """Raise ValueError unless the window holds a recent and a surprising part."""
        if self.keep == "surprising" and self.window < _LEAST_SURPRISING:
            raise ValueError(
                f"keep: surprising needs a window of at least {_LEAST_SURPRISING}, found "
                f"{self.window}"
            )
