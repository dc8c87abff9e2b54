"""How the processes of a training find each other, and how they part.

A process that ends by an error of its own leaves a note in the store, so that the others, who lose
their connection to it, end without a word: one error, one message.
"""

import gc
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ys_llm
from ys_llm.config.schema import TrainConfig
from ys_llm.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, UserError
from ys_llm.system.place import Place
from ys_llm.training.compute import select_device
from ys_llm.training.metrics import log_line, silenced
from ys_llm.training.ranks.group import ALONE, LeaveQuietly, Ranks
from ys_llm.training.ranks.start import agree_on_start

PREPARING = timedelta(days=2)  # the others wait as long for the first process to read the text
ANSWER = timedelta(minutes=30)  # in which a process that others wait for must come
SAME_SIGNAL_SECONDS = 10.0  # a signal again within them was passed on by a launcher
_FAREWELL_SECONDS = 0.5  # in which a launcher ends those whose peer was killed
_LOOK_SECONDS = 0.02
_PREPARED, _LEFT, _GONE = "prepared", "left", "gone"


@contextmanager
def joined(place: Place | None, config: TrainConfig) -> Iterator[Ranks]:
    """The processes of this training, connected until the context ends; all but the first silent.

    UserError where they cannot work together, and where an error is this process' alone.
    LeaveQuietly where another process has said, or will say, why the training ends.
    """
    if place is None:
        yield ALONE
        return
    ranks = _connected(place, config)
    try:
        with silenced(not ranks.is_first):
            if ranks.restarts:
                log_line(f"restarted    {place.size} processes, restart {ranks.restarts}")
            _check_code(ranks)
            if not ranks.is_first:
                _wait_for_first(ranks.store)
            yield ranks
        _part()
    except LeaveQuietly:
        raise
    except KeyboardInterrupt:
        _leave_note(ranks, EXIT_INTERRUPTED)
        raise
    except UserError as error:
        _leave_note(ranks, error.exit_code)
        raise _by_rank(ranks, error) from error
    except Exception as error:
        if not _is_lost_connection(error):
            _leave_note(ranks, EXIT_FAILED)
            raise
        raise _alone_now(ranks, error) from error


def call_others(ranks: Ranks) -> None:
    """The first process has prepared what the others need: they take part from here on."""
    if ranks.store is not None:
        ranks.store.set(_PREPARED, "1")


def _connected(place: Place, config: TrainConfig) -> Ranks:
    """The processes, once they have found each other; UserError where one cannot be reached."""
    if not dist.is_available() or not dist.is_gloo_available():
        raise UserError(
            "this build of torch cannot connect processes: it has no gloo",
            "Train in one process, or install the torch of pytorch.org.",
        )
    device = select_device(config)
    if device.type == "cuda":
        _take_gpu(place)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        return _grouped(place, backend)
    except RuntimeError as error:  # those of torch's stores and groups are no others
        raise UserError(
            f"process {place.rank} of {place.size} cannot reach the others at {place.address}:"
            f"{place.port} ({str(error).splitlines()[0]})",
            "No firewall may be between the machines; GLOO_SOCKET_IFNAME=eth0 names the network, "
            "which is needed where a machine's own name means 127.0.0.1.",
        ) from error


def _grouped(place: Place, backend: str) -> Ranks:
    """Meet at the store, and make the group under a name that no process of before knows."""
    hub = dist.TCPStore(  # type: ignore[attr-defined]
        place.address,
        place.port,
        is_master=place.rank == 0 and not place.launcher_store,
        wait_for_workers=False,
        timeout=ANSWER,
    )
    start = agree_on_start(hub, place, ANSWER)
    store = dist.PrefixStore(start.name, hub)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.size, timeout=ANSWER
    )
    return Ranks(replace(place, restarts=start.restarts), store)


def _take_gpu(place: Place) -> None:
    count = torch.cuda.device_count()
    if place.local_size > count:
        raise UserError(
            f"{place.local_size} processes were started on a machine with {count} GPUs",
            "Start one for each GPU, or type --set train.device=cpu",
            exit_code=EXIT_USAGE,
        )
    torch.cuda.set_device(place.local_rank)


def _check_code(ranks: Ranks) -> None:
    """Every process must run the same code: their results are added up."""
    codes = [int(number) for (number,) in ranks.gathered([_code_number()])]
    others = [str(rank) for rank, code in enumerate(codes) if code != codes[0]]
    if others:
        error = UserError(
            f"process {', '.join(others)} of {ranks.size} runs other code than process 0 "
            f"(ys {ys_llm.__version__}, torch {torch.__version__})",
            "Install the same ys and the same torch on every machine.",
            exit_code=EXIT_USAGE,
        )
        raise ranks.ending(error, EXIT_USAGE)


def _code_number() -> float:
    """A hash of the package's sources and of torch's version, as an exact number."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = Path(ys_llm.__file__).parent
    for path in sorted(p for end in ("*.py", "*.cpp", "*.h") for p in package.rglob(end)):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return float(int(digest.hexdigest()[:12], 16))


def _part() -> None:
    """End the group; nothing is sent from here on.

    First goes what still refers to it: DDP's destructor would wait, holding Python's lock, for a
    thread of gloo that needs this lock.
    """
    gc.collect()
    with suppress(RuntimeError):
        dist.destroy_process_group()


def _wait_for_first(store: Any) -> None:
    """Until the first process has prepared the training, or says that there will be none."""
    store.wait([_PREPARED], PREPARING)
    if store.get(_PREPARED) == b"0":
        raise _quietly(store)


def _leave_note(ranks: Ranks, exit_code: int) -> None:
    """Say that the training ends with this code, also to those who wait to begin.

    A process that keeps the store itself stays until the others have read it.
    """
    place, store = ranks.place, ranks.store
    assert place is not None, "a process alone leaves nobody"
    with suppress(Exception):
        store.set(_LEFT, str(exit_code))
        store.set(_PREPARED, "0")
        if place.rank == 0 and not place.launcher_store:
            ends = time.monotonic() + _FAREWELL_SECONDS
            while store.add(_GONE, 0) < place.size - 1 and time.monotonic() < ends:
                time.sleep(_LOOK_SECONDS)


def _quietly(store: Any) -> LeaveQuietly:
    """The end that the note in the store asks for."""
    code = int(store.get(_LEFT))
    store.add(_GONE, 1)
    return LeaveQuietly(code)


def _by_rank(ranks: Ranks, error: UserError) -> UserError:
    """The error of one process of several."""
    if ranks.is_first:
        return error
    problem = f"process {ranks.rank} of {ranks.size}: {error.problem}"
    return UserError(problem, error.fix, exit_code=error.exit_code)


def _is_lost_connection(error: Exception) -> bool:
    """Whether a message could not be sent or received: gloo raises plain RuntimeErrors."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "closed by peer", "reset by peer", "Broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _alone_now(ranks: Ranks, error: Exception) -> Exception:
    """What to raise by a process that has lost another one, which may have said why."""
    ends = time.monotonic() + _FAREWELL_SECONDS
    while time.monotonic() < ends:
        with suppress(Exception):
            if ranks.store.check([_LEFT]):
                return _quietly(ranks.store)
        time.sleep(_LOOK_SECONDS)
    _leave_note(ranks, EXIT_FAILED)
    first_line = str(error).splitlines()[0]
    return UserError(
        f"process {ranks.rank} of {ranks.size} lost its connection to another one ({first_line})",
        "Start them again: the run resumes from its latest checkpoint. With --max-restarts N this "
        "happens by itself.",
    )
