"""`ys train --processes N`: the processes of one machine, started and replaced by torch's launcher.

The same happens under `torchrun`, which serves several machines too; here exit codes are those of
`ys train`, and a mistake of the user is not tried again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ys_llm.errors import EXIT_FAILED, UserError

SAVING_SECONDS = 600  # for a checkpoint, after a request to stop


def launch(words: Sequence[str], *, processes: int, max_restarts: int) -> int:
    """Run `ys WORDS` in every process until all are done; the exit code of the first.

    Raises UserError where one has died more often than `max_restarts` allows.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="ys",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=max_restarts,
        shutdown_timeout=SAVING_SECONDS,
    )
    with _without_log():
        try:
            codes: dict[int, int] = elastic_launch(settings, work)(list(words))
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as error:
            raise _ended_badly(error, max_restarts) from None
    return codes[0]


def work(words: list[str]) -> int:
    """One of the processes: the exit code of `ys WORDS`, where trying again would change nothing.

    It leaves the terminal's group: Ctrl-C reaches the launcher, which passes it on.
    """
    from ys_llm.cli.main import main

    os.setsid()
    code = main(words)
    if code == EXIT_FAILED or code >= 128:  # an end that its launcher must see, or waits for
        sys.exit(code)
    return code


def _ended_badly(error: object, max_restarts: int) -> UserError:
    """What to say when a process has failed for the last time."""
    rank, failure = error.get_first_failure()  # type: ignore[attr-defined]
    if failure.exitcode >= 128 or failure.exitcode == EXIT_FAILED:  # it has said so itself
        how = f"ended with {failure.exitcode}"
    else:
        how = f"was ended by {failure.signal_name()}"
    after = f" after {max_restarts} restarts" if max_restarts else ""
    code = failure.exitcode if failure.exitcode >= 128 else EXIT_FAILED
    return UserError(
        f"process {rank} {how}{after}",
        "The run resumes from its latest checkpoint when it is started again.",
        exit_code=code,
    )


@contextmanager
def _without_log() -> Iterator[None]:
    """Without the launcher's own log: the first process says when it has been restarted."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
