"""A stand-in for the capture of a CUDA graph, for tests on a CPU."""

from __future__ import annotations

from collections.abc import Callable


def rerun(functions: list[Callable[[], None]]) -> list[Callable[[], None]]:
    """Run them now; a replay runs them again on the same tensors, as a CUDA graph does."""
    for function in functions:
        function()
    return list(functions)
