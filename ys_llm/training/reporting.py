"""Keeps a run's report.html and report.json up to date while it is trained, at little cost.

A report never stops a training: what cannot be measured or written is logged once and left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from ys_llm.errors import EXIT_FAILED, EXIT_USAGE, UserError
from ys_llm.evaluation.by_position import loss_by_position
from ys_llm.evaluation.state_statistics import state_statistics
from ys_llm.model.costs import parameter_count, state_bytes
from ys_llm.model.language_model import Model
from ys_llm.runs.history import read_facts, write_facts
from ys_llm.runs.report import DONE, TRAINING, write_report
from ys_llm.system.energy import EnergyMeter
from ys_llm.system.machine import inspect_machine, versions
from ys_llm.training.metrics import log_line
from ys_llm.training.trainer import Run, TrainState, is_finished

MOST_COST = 0.02  # of the time since the last report: a report that takes longer waits
_POSITION_TOKENS = 30_000  # at most, for the loss by position, measured once, at the end
_POSITION_MULTIPLE = 8
_KEPT_SESSIONS = 50
_ENDED_BADLY = "ended_badly"


class Reporter:
    """The facts of a run that only its report has, and when the report is written again."""

    def __init__(self, run: Run, state: TrainState, origins: Mapping[str, str]) -> None:
        self._run, self._state = run, state
        self._energy = EnergyMeter()
        self._seconds_before = state.progress.seconds
        self._is_quiet = False
        self._is_idle = is_finished(run, state) or not run.ranks.is_first
        self._written, self._cost = 0.0, 0.0
        before = read_facts(run.folder)
        self._session = _session(run, state)
        self.facts: dict[str, Any] = {
            **before,
            **_facts(run),
            "status": TRAINING,
            _ENDED_BADLY: False,
            "origins": _origins(run, origins, before.get("origins")),
            "sessions": [*_sessions_of(before)[1 - _KEPT_SESSIONS :], self._session],
        }

    def poll(self) -> None:
        """Read the energy counters, which run over: once a step."""
        self._energy.poll()

    def refresh(self, *, measured: Model | None = None) -> None:
        """Write the report if it costs little; `measured` is a model whose state is described."""
        if time.perf_counter() - self._written < self._cost / MOST_COST:
            return
        self._write(measured)

    def end(self, error: BaseException | None) -> None:
        """Note how the session ended, and write the report for the last time."""
        self.facts["status"] = DONE if error is None else _ending(error)
        self.facts[_ENDED_BADLY] = is_bad_end(error)
        self._is_quiet = self._is_quiet or error is not None  # that error is what is to be said
        self._write(None)

    def describe_end(self, model: Model, result: Mapping[str, Any]) -> None:
        """Measure what is measured once, of the published weights."""
        if self._is_idle:
            return
        self.facts["result"] = dict(result)
        with self._unless_impossible():
            if self._run.data.validation is not None:
                self.facts["state"] = _state(model, self._run)
                self.facts["by_position"] = _by_position(model, self._run)

    def _write(self, measured: Model | None) -> None:
        lock, began = self._run.lock, time.perf_counter()
        if self._is_idle or (lock is not None and not lock.is_at_path()):
            return  # nothing was left to do; or another run may be there now
        self._session["seconds"] = self._state.progress.seconds - self._seconds_before
        self._session["joules"] = self._energy.joules
        with self._unless_impossible():
            if measured is not None and self._run.data.validation is not None:
                self.facts["state"] = _state(measured, self._run)
            write_facts(self._run.folder, self.facts)
            write_report(self._run.folder)
        self._written = time.perf_counter()
        self._cost = self._written - began

    @contextmanager
    def _unless_impossible(self) -> Iterator[None]:
        try:
            yield
        except (UserError, OSError, RuntimeError) as error:
            if not self._is_quiet:
                log_line(f"report       not written: {error}")
            self._is_quiet = True


@contextmanager
def reporting(run: Run, state: TrainState, origins: Mapping[str, str]) -> Iterator[Reporter]:
    """A reporter of this session, which notes how it ends."""
    reporter = Reporter(run, state, origins)
    reporter.refresh()
    try:
        yield reporter
    except BaseException as error:
        reporter.end(error)
        raise
    reporter.end(None)


def is_bad_end(error: BaseException | None) -> bool:
    """Whether a session ended by a failure, not by being done or by being stopped by the user."""
    if isinstance(error, UserError):
        return EXIT_FAILED <= error.exit_code < 128 and error.exit_code != EXIT_USAGE
    return isinstance(error, Exception)


def _ending(error: BaseException) -> str:
    if isinstance(error, UserError):
        return error.problem
    return "stopped" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def _session(run: Run, state: TrainState) -> dict[str, Any]:
    machine = inspect_machine()
    return {
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
        "from_step": state.progress.step,
        "processor": machine.processor,
        "cores": machine.usable_cores,
        "memory_bytes": machine.memory_bytes,
        "threads": torch.get_num_threads(),
        "device": str(run.device),
        "dtype": run.compute.dtype,
        "backends": dict(run.compute.backends),
        "versions": versions(),
    }


def _sessions_of(facts: Mapping[str, Any]) -> list[Any]:
    found = facts.get("sessions")
    return found if isinstance(found, list) else []


def _facts(run: Run) -> dict[str, Any]:
    seq_len = run.config.train.plan[0].seq_len
    return {
        "parameters": parameter_count(run.model),
        "state_bytes": state_bytes(run.model, batch_size=1, seq_len=seq_len),
        "layers": list(run.config.model.layers),
        "total_steps": run.total_steps,
        "prompt": run.data.sample_prompt,
        "baselines": dict(run.data.baselines),
        "corpus": {**run.data.described, "sources": list(run.data.sources)},
    }


def _origins(run: Run, now: Mapping[str, str], before: Any) -> dict[str, str]:
    """Where each value came from; what a resumed run takes from its own config.yaml came before."""
    own = str(run.folder / "config.yaml")
    known = before if isinstance(before, dict) else {}
    return {
        name: known.get(name, origin) if origin.startswith(own) else origin
        for name, origin in now.items()
    }


def _state(model: Model, run: Run) -> list[dict[str, Any]]:
    assert run.data.validation is not None
    return [asdict(part) for part in state_statistics(model, run.data.validation)]


def _by_position(model: Model, run: Run) -> list[dict[str, Any]]:
    data, config = run.data.validation, run.config.train
    seq_len = config.plan[-1].seq_len
    if data is None or data.n_inputs < seq_len:
        return []
    rows = loss_by_position(
        model,
        data,
        seq_len=seq_len,
        multiple=_POSITION_MULTIPLE,
        max_tokens=min(_POSITION_TOKENS, config.eval_tokens or _POSITION_TOKENS),
        reset_at_document=run.config.data.reset_at_document,
    )
    return [asdict(row) for row in rows]
