"""Which start of the processes this is, agreed by those that take part in it.

A launcher counts how often it has started its processes again. On several machines each launcher
counts the deaths that it has seen, and after one the numbers differ; a process that went by its
own would look for the others where they are not, or find the addresses of dead ones.
"""

import json
import secrets
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ys_llm.errors import UserError
from ys_llm.system.place import Place

_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Start:
    """The name that this start has alone, and how many there were before it."""

    name: str
    restarts: int


def agree_on_start(hub: Any, place: Place, patience: timedelta) -> Start:
    """The same for every process: the first one lists all, each confirms that it is on the list.

    A token of a process that has died since is confirmed by nobody, so that a list is used only
    if all on it are alive. UserError for one that does not come in time.
    """
    ends, own = time.monotonic() + patience.total_seconds(), secrets.token_hex(8)
    hub.set(f"token {place.rank}", own)
    while time.monotonic() < ends:
        found = _listed(hub, place) if place.rank == 0 else _confirmed(hub, place.rank, own)
        if found is not None:
            return found
        time.sleep(_LOOK_SECONDS)
    raise UserError(
        f"process {place.rank} of {place.size} has waited {patience} for the others",
        "Start as many as were announced: torchrun's --nnodes must be that of every machine.",
    )


def _listed(hub: Any, place: Place) -> Start | None:
    """As the first process: the list of those that are here, once all have confirmed it."""
    keys = [f"token {rank}" for rank in range(place.size)]
    if not hub.check(keys):
        return None
    tokens = [hub.get(key).decode() for key in keys]
    name = ":".join(tokens)
    hub.set("list", json.dumps(tokens))
    if not hub.check([f"confirmed {name} {rank}" for rank in range(1, place.size)]):
        return None
    start = Start(name, max(hub.add("starts", 1) - 1, place.restarts))
    hub.set("start", json.dumps([start.name, start.restarts]))
    return start


def _confirmed(hub: Any, rank: int, own: str) -> Start | None:
    """As another process: confirm a list that this one is on; the start that came of it."""
    if not hub.check(["list"]):
        return None
    tokens = json.loads(hub.get("list"))
    if tokens[rank] != own:
        return None
    name = ":".join(tokens)
    hub.set(f"confirmed {name} {rank}", "1")
    if not hub.check(["start"]):
        return None
    started, restarts = json.loads(hub.get("start"))
    return Start(started, restarts) if started == name else None
