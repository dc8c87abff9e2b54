"""Which of several processes of one training this is, as torchrun tells each of them."""

import os
from dataclasses import dataclass

from ys_llm.errors import EXIT_USAGE, UserError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """One of `size` processes; `local_*` counts those of its machine, `machine` the machines.

    `restarts` is how often all were started again after one had failed. The processes find each
    other through a store at `address` and `port`, which their launcher keeps where `launcher_store`
    is true, and the first process otherwise.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    machine: int
    restarts: int
    address: str
    port: int
    launcher_store: bool


def place_of_process() -> Place | None:
    """The place that a launcher gave this process; None for one that was started alone."""
    if not all(os.environ.get(name) for name in _NEEDED):
        return None
    return Place(
        _number("RANK"),
        _number("WORLD_SIZE"),
        _number("LOCAL_RANK", _number("RANK")),
        _number("LOCAL_WORLD_SIZE", _number("WORLD_SIZE")),
        _number("GROUP_RANK", 0),
        _number("TORCHELASTIC_RESTART_COUNT", 0),
        os.environ["MASTER_ADDR"],
        _number("MASTER_PORT"),
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(
            f"the variable {name} is {text!r}, and this process was started as one of several",
            "Start them with torchrun, or unset RANK to train in one process.",
            exit_code=EXIT_USAGE,
        )
    return int(text)
