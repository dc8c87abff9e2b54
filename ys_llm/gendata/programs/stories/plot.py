"""What a plot is."""

from collections.abc import Callable
from dataclasses import dataclass

from ys_llm.gendata.programs.stories.stage import Stage


@dataclass(frozen=True)
class Plot:
    """A story's skeleton: `prepare` decides what happens, `script` tells it.

    `gist` continues "a story about a shy fox who ...", `theme` continues "a story about ...".
    """

    name: str
    theme: str
    gist: str
    script: str
    prepare: Callable[[Stage], None]
