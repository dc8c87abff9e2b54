"""How a run becomes a replica of a training, and what its state is for one that joins later."""

import hashlib
import json
import logging
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ys_llm.config.sources import to_mapping
from ys_llm.errors import EXIT_BACKEND_DOWN, EXIT_USAGE, UserError
from ys_llm.runs.checkpoint import Checkpoint, optimizer_tensors, restore, trained_weights
from ys_llm.training.elastic.replicas import Replicas
from ys_llm.training.elastic.transport import StateTransport
from ys_llm.training.metrics import log_line
from ys_llm.training.resume import TrainProgress
from ys_llm.training.trainer import Run, TrainState

DEFAULT_PORT = 29510
# They must nest: a message of a step, an answer of a replica, an agreement of all.
_MESSAGE, _ANSWER, _AGREEMENT = (timedelta(seconds=s) for s in (15, 30, 60))
# Of the configuration what replicas may have of their own.
_OWN = ("run", "data.path", "train.threads", "train.device", "train.backend", "train.dtype")


@dataclass(frozen=True)
class Elastic:
    """Where the lighthouse is; `exactly` so many take part at a time, 0 = all that are there."""

    host: str
    port: int = DEFAULT_PORT
    exactly: int = 0


def check_elastic(run: Run) -> None:
    """UserError for what replicas that come and go cannot do."""
    config, problem, fix = run.config, "", "--set data.batching=shuffled"
    if config.data.carries_state:
        problem = f"data.batching: {config.data.batching} carries a state from batch to batch"
    elif len(config.train.plan) > 1:
        problem, fix = "train.stages has several stages", "--set train.stages=[]"
    elif run.reference is not None:
        problem, fix = "train.reference_run selects tokens", "--set train.reference_run="
    elif not run.ranks.is_alone:
        problem, fix = "this is one of several processes of a replica", "--elastic without torchrun"
    if problem:
        raise UserError(
            f"{problem}, which replicas that come and go cannot do",
            f"Type {fix}",
            exit_code=EXIT_USAGE,
        )


@contextmanager
def joined(run: Run, state: TrainState, elastic: Elastic) -> Iterator[Run]:
    """The run as a replica, until the context ends. UserError (4) without torchft or lighthouse."""
    check_elastic(run)
    try:
        import torchft
    except ImportError as error:
        raise UserError(
            "--elastic needs the package torchft",
            'Type: pip install "ys_llm[elastic]"',
            exit_code=EXIT_BACKEND_DOWN,
        ) from error
    logging.getLogger("torchft").setLevel(logging.CRITICAL)  # a replica that dies is no traceback
    address = _own_address(elastic)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, 0, is_master=True, wait_for_workers=False
    )
    mode = torchft.manager.WorldSizeMode
    try:
        manager = torchft.Manager(
            pg=torchft.ProcessGroupGloo(timeout=_MESSAGE),
            load_state_dict=lambda told: _take(run, state, told),
            state_dict=lambda: _described(run, state),
            min_replica_size=elastic.exactly or 1,
            world_size_mode=mode.FIXED_WITH_SPARES if elastic.exactly else mode.DYNAMIC,
            use_async_quorum=False,
            timeout=_ANSWER,
            quorum_timeout=_AGREEMENT,
            connect_timeout=_MESSAGE,
            rank=0,
            world_size=1,
            store_addr=address,
            store_port=store.port,
            lighthouse_addr=f"http://{elastic.host}:{elastic.port}",
            replica_id=f"{run.config.run}_",
            hostname=address,
            checkpoint_transport=StateTransport(address, _ANSWER),
            init_sync=False,
        )
    except (RuntimeError, TimeoutError) as error:
        raise _no_lighthouse(elastic) from error
    replicas = Replicas(manager, _recipe(run))
    log_line(f"replicas     joining those of {elastic.host}:{elastic.port}")
    try:
        yield replace(run, replicas=replicas)
    finally:
        replicas.leave()


def _own_address(elastic: Elastic) -> str:
    """The address of this machine on the way to the lighthouse; no message is sent."""
    try:
        family, _, _, _, target = socket.getaddrinfo(
            elastic.host, elastic.port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise _no_lighthouse(elastic) from error


def _no_lighthouse(elastic: Elastic) -> UserError:
    return UserError(
        f"there is no lighthouse at {elastic.host}:{elastic.port}",
        f"Start it there: torchft_lighthouse --bind [::]:{elastic.port} --min_replicas 1 "
        "--join_timeout_ms 10000",
        exit_code=EXIT_BACKEND_DOWN,
    )


def _recipe(run: Run) -> int:
    """20 bits of a hash of everything that replicas must have in common."""
    config = to_mapping(run.config)
    for name in _OWN:
        section, _, key = name.rpartition(".")
        (config[section] if section else config).pop(key)
    text = run.environment.get("training text")
    described = json.dumps([config, run.tokenizer.fingerprint, text], default=str, sort_keys=True)
    return int(hashlib.sha256(described.encode()).hexdigest()[:5], 16)


def _described(run: Run, state: TrainState) -> dict[str, Any]:
    """The state of this replica, for one that joins."""
    return {
        "weights": trained_weights(run.model),
        "moments": optimizer_tensors(run.model, run.optimizer),
        "progress": asdict(state.progress),
    }


def _take(run: Run, state: TrainState, told: dict[str, Any]) -> None:
    """Go on from the state of another replica; UserError where it does not fit."""
    before, progress = state.progress, TrainProgress(**told["progress"])
    source = Checkpoint(Path("another replica"), {}, told["weights"], told["moments"], {})
    restore(source, run.model, run.optimizer)
    # The next evaluation publishes: the best weights are in another replica's folder.
    progress.best_bits_per_byte, progress.best_step = math.inf, before.best_step
    progress.seconds, progress.saving_seconds = before.seconds, before.saving_seconds
    state.progress = progress
    log_line(f"replicas     caught up from step {before.step:,} to {progress.step:,}")
