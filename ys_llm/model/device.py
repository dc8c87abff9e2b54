"""The device that a model is put on."""

import torch

from ys_llm.errors import EXIT_USAGE, UserError


def resolve_device(name: str, *, setting: str, fix: str) -> torch.device:
    """`cpu` or `cuda`; `auto` is CUDA where torch finds a device.

    Raises UserError where `setting` asks for CUDA and there is none; `fix` is what to type instead.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{setting} is cuda, and torch finds no CUDA device",
            f"{fix}, or install a CUDA build of torch.",
            exit_code=EXIT_USAGE,
        )
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
