"""The folder for files that can be rebuilt: compiled kernels."""

import os
from functools import cache
from pathlib import Path

CACHE_VARIABLE = "YS_CACHE_DIR"


def cache_dir() -> Path | None:
    """`YS_CACHE_DIR`, else `$XDG_CACHE_HOME/ys`, else `~/.cache/ys`; None without a home folder."""
    read = os.environ.get
    return _cache_dir(read(CACHE_VARIABLE), read("XDG_CACHE_HOME"), read("HOME"))


@cache
def _cache_dir(chosen: str | None, base: str | None, _home: str | None) -> Path | None:
    if chosen:
        return Path(chosen).absolute()
    if base and Path(base).is_absolute():
        return Path(base) / "ys"
    try:
        return Path.home() / ".cache" / "ys"
    except RuntimeError:  # no HOME, and the user is not in the password database
        return None
