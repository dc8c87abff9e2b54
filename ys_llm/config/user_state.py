"""The folder for what a user has done: the log of sessions, and the lines that were typed."""

import os
from pathlib import Path

STATE_VARIABLE, LOG_VARIABLE = "YS_STATE_DIR", "YS_LOG"
_OFF = ("0", "off", "no", "false")


def state_dir() -> Path | None:
    """`YS_STATE_DIR`, else `$XDG_STATE_HOME/ys`, else `~/.local/state/ys`; None without a home."""
    read = os.environ.get
    if chosen := read(STATE_VARIABLE):
        return Path(chosen).absolute()
    if (base := read("XDG_STATE_HOME")) and Path(base).is_absolute():
        return Path(base) / "ys"
    try:
        return Path.home() / ".local" / "state" / "ys"
    except RuntimeError:  # no HOME, and the user is not in the password database
        return None


def log_folder() -> Path | None:
    """Where sessions are kept; None where `YS_LOG` is 0, off, no or false, or without a home."""
    is_off = os.environ.get(LOG_VARIABLE, "").lower() in _OFF
    return None if is_off else state_dir()
