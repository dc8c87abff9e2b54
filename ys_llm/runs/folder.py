"""A run's folder on disk: its layout, finding it, owning it, and cleaning it.

    runs/<name>/.ys-lock                marks the folder as a run, and is locked while it is trained
                config.yaml             the resolved configuration
                config.json             the architecture in full, tokenizer's fingerprint, step
                model.safetensors       the weights of the best evaluation
                adapter_model.safetensors  adapter_config.json    or an adapter of another run,
                initial_state.safetensors                         or its learned initial state
                tokenizer.json  generation_config.json  metrics.jsonl  README.md
                split.json              which text is held out
                common_words.json       the words that are common in its training text
                held_out.json           what `ys compare` has measured of the weights
                evaluations/TASK.json   what `ys eval --tasks` has measured of the weights
                report.html             curves, samples, settings, text; report.json: its own facts
                cache/                  token shards, and the split of a large text
                states/                 sessions that `ys run` has saved
                checkpoints/step-*/     what training resumes from
                rollbacks.json          steps that were rolled back, and why
                post-mortem/            diagnosis and batch of such a step
                superseded/             checkpoints that a rollback replaced, and damaged ones

Nothing here needs torch.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ys_llm.errors import EXIT_NO_MODEL, UserError, command_line
from ys_llm.system.files import hide_folder, move_into, readable_os_errors
from ys_llm.system.lock import RUN_LOCK, HeldLock, hold_lock, is_run

MODEL, INITIAL_STATE = "model.safetensors", "initial_state.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as PEFT names them
CHECKPOINTS, SUPERSEDED, POST_MORTEM = "checkpoints", "superseded", "post-mortem"
SPLIT = "split.json"
COMMON_WORDS = "common_words.json"
REPORT, REPORT_FACTS = "report.html", "report.json"
HELD_OUT = "held_out.json"
STATES = "states"
EVALUATIONS = "evaluations"
_MODEL_NAMES = (
    CHECKPOINTS,  # first: without it nothing resumes from what is only partly there
    "config.json",
    *(MODEL, ADAPTER, ADAPTER_CONFIG, INITIAL_STATE),
    "generation_config.json",
    "metrics.jsonl",
    "rollbacks.json",
    SPLIT,
    COMMON_WORDS,
    HELD_OUT,
    EVALUATIONS,
    REPORT,
    REPORT_FACTS,
    "README.md",
    POST_MORTEM,
    SUPERSEDED,
    STATES,  # no other model reads them
)
_NAMES: dict[str, tuple[str, ...]] = {
    "model": _MODEL_NAMES,
    "all": (*_MODEL_NAMES, "config.yaml", "tokenizer.json", "cache"),
}
CleanScope = Literal["model", "all"]


@dataclass(frozen=True)
class Removal:
    """A file or folder that `ys train clean` removes."""

    path: Path
    bytes: int


def find_run(runs_dir: Path, name: str | None) -> Path:
    """The folder of a trained run by name or path, or of the latest; exit code 3 if none."""
    trained = {path: _trained_at(path) for path in runs_dir.glob("*")}
    runs = sorted((path for path, when in trained.items() if when), key=lambda path: trained[path])
    if name is None:
        if runs:
            return runs[-1]
        raise UserError(
            f"{runs_dir}/ has no trained model",
            f"Type: {command_line('train')}",
            exit_code=EXIT_NO_MODEL,
        )
    for path in (runs_dir / name, Path(name)):
        if _trained_at(path):
            return path
    if is_run(runs_dir / name):
        raise UserError(
            f"the run {name} has no model yet",
            f"Type: {command_line('train', run=name)}",
            exit_code=EXIT_NO_MODEL,
        )
    known = ", ".join(sorted(path.name for path in runs))
    raise UserError(
        f"there is no trained model {name!r}",
        f"Choose one of: {known}" if known else f"Type: {command_line('train')}",
        exit_code=EXIT_NO_MODEL,
    )


def find_run_folder(runs_dir: Path, name: str) -> Path:
    """The folder of a run by name or path, whether or not it has a model; exit code 3 if none."""
    for path in (runs_dir / name, Path(name)):
        if is_run(path):
            return path
    raise UserError(f"there is no run {name!r}", "Give its folder", exit_code=EXIT_NO_MODEL)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, intact or not."""
    return sorted((run / CHECKPOINTS).glob("step-*"))


def weights_file(run: Path) -> Path:
    """The file of what was trained: the model, or what a fine-tuned run has instead."""
    found = (run / name for name in (MODEL, ADAPTER, INITIAL_STATE) if (run / name).is_file())
    return next(found, run / MODEL)


def is_trained(run: Path) -> bool:
    """Whether the folder has a model."""
    return _trained_at(run) > 0


def _trained_at(run: Path) -> float:
    """When the run's model was written, in seconds; 0 where it has none."""
    try:
        path = weights_file(run)
        return path.stat().st_mtime + 1 if path.is_file() else 0.0
    except OSError:  # a broken link, a name of a thousand letters
        return 0.0


@contextmanager
def locked(run: Path) -> Iterator[HeldLock]:
    """Own the run's folder, created if missing, until the context ends.

    Raises UserError where another process owns it, or where the folder is not a run's.
    """
    _refuse_foreign(run)
    with hold_lock(
        run,
        file=RUN_LOCK,
        activity="being trained",
        fix="Wait until it is done, stop it with Ctrl-C, or choose another --run",
    ) as lock:
        yield lock


def _refuse_foreign(run: Path) -> None:
    if run.is_symlink():
        raise UserError(f"{run} is a link", "Remove the link itself, or name the real folder")
    if os.path.lexists(run) and not run.is_dir():
        raise UserError(f"{run} is a file, expected a folder", "Choose another --run")
    if run.is_dir() and not is_run(run):
        content = sorted(os.listdir(run))
        if content:
            raise UserError(
                f"{run} is not a run of ys: it has {content[0]} and no {RUN_LOCK}",
                "Choose another --run",
            )


def remove_temp_files(run: Path) -> None:
    """Remove the partial files of a killed process; only the owner of the lock may."""
    cache = run / "cache"
    for folder in (run, run / CHECKPOINTS, run / POST_MORTEM, cache, *cache.glob("*")):
        for path in folder.glob(".*.tmp"):
            _remove(path)


def archive(run: Path, path: Path) -> Path:
    """Move a checkpoint or a file into `superseded/`; returns its new path."""
    return move_into(run / SUPERSEDED, path)


def list_removals(run: Path, scope: CleanScope, *, corpus: Path) -> list[Removal]:
    """What `ys train clean` ("model") or `clean all` removes: only files that a run writes.

    Raises UserError where the folder is a link or not a run's, or where the corpus is in something
    that would be removed.
    """
    if not os.path.lexists(run):
        return []
    _refuse_foreign(run)
    removals = [run / name for name in _NAMES[scope] if os.path.lexists(run / name)]
    real_corpus = os.path.realpath(corpus)
    for path in removals:
        real = os.path.realpath(path)
        if real == real_corpus or real_corpus.startswith(real + os.sep):
            raise UserError(
                f"data.path {corpus} is in {path}, which `clean` would remove",
                "Move the text to a folder of its own, and give its path: --data PATH",
            )
    return [Removal(path, _size(path)) for path in removals]


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count as 0."""
    if path.is_symlink():
        return 0
    if not path.is_dir():
        return path.stat().st_size
    inner = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in inner)


def remove(removals: list[Removal]) -> None:
    """Remove files and folders; a link is removed, never followed.

    Folders are hidden first and removed last, so that `finish_clean` can tell an interrupted clean.
    """
    hidden = []
    for item in removals:
        if item.path.is_dir() and not item.path.is_symlink():
            hidden.append(hide_folder(item.path))
        else:
            _remove(item.path)
    for folder in hidden:
        _remove(folder)


def is_half_cleaned(run: Path) -> bool:
    """Whether a clean was interrupted after it had hidden the checkpoints."""
    return not checkpoints(run) and any(run.glob(f".{CHECKPOINTS}.*.tmp"))


def finish_clean(run: Path, *, corpus: Path) -> None:
    """Remove what an interrupted clean has left of the model; only the owner of the lock may."""
    if is_half_cleaned(run):
        remove(list_removals(run, "model", corpus=corpus))


def _remove(path: Path) -> None:
    with readable_os_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)
