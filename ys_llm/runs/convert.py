"""Updates a run that an earlier version of ys made: settings, tensors and checkpoints.

Format 1 is that of ys before `model.layers`. Each file is replaced atomically, and so is each
checkpoint: at any instant the old one or the new one exists. config.yaml, by which an earlier run
is recognised, is written last, so that an interrupted conversion is repeated.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ys_llm.config.renamed import is_earlier, updated
from ys_llm.config.schema import Config
from ys_llm.config.sources import from_mapping, to_yaml
from ys_llm.config.strict_reader import raise_problems
from ys_llm.config.yaml_io import read_yaml
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.model.state import flatten
from ys_llm.runs.checkpoint import (
    Checkpoint,
    CorruptCheckpointError,
    read_checkpoint,
    write_checkpoint,
)
from ys_llm.runs.folder import CHECKPOINTS, SUPERSEDED, checkpoints, locked
from ys_llm.runs.model_files import (
    architecture,
    read_json,
    read_tensors,
    tensor_bytes,
    weights,
    write_json,
)
from ys_llm.system.files import remove_folder, sync_folder, write_atomically
from ys_llm.system.lock import is_run

_OLD, _NEW = ".old", ".new"  # suffixes of hidden names, during a replacement
_FORMAT = 1  # of the checkpoints that are converted
_SUPERSEDED = "left-behind"  # their folder's former name
_TENSORS = {".entry": ".summary_scale"}  # former suffix of a parameter's name: the current one
_BACKENDS = {"windowed_onednn": "windowed", "compiled": "cpp"}
_PORTABLE = ("reference", "windowed", "cpp")  # others are chosen again
_CARRIED = "carried."  # prefix of the carried state among a checkpoint's tensors
_TIME_SECOND = ("keys", "values")  # of a cache: B H T P then, B T H P now


def convert_run(run: Path) -> Iterator[str]:
    """Convert a run in place; yield a line for each file or folder that changed.

    Raises UserError where `run` is not a run, or its settings cannot be read.
    """
    if not is_run(run):
        raise UserError(f"{run} is not a run of ys", "Give its name, or its folder")
    with locked(run):
        path = run / "config.yaml"
        text = read_yaml(path)
        raise_problems([f"{path}:{line}: {problem}" for line, problem in text.problems])
        values = text.values
        if not is_earlier(values):
            yield f"{run} needs no conversion"
            return
        config = from_mapping(updated(values))
        if (run / "tokenizer.json").exists():
            yield from _convert_tensors(run, config)
        if (run / _SUPERSEDED).exists():
            yield _rename_superseded(run)
        if (run / "config.json").exists():
            described = _without_architecture(read_json(run / "config.json"), values)
            write_json(run / "config.json", {**described, **architecture(config.model)})
            yield f"{run}/config.json"
        write_atomically(path, to_yaml(config))
        yield str(path)


def _convert_tensors(run: Path, config: Config) -> Iterator[str]:
    """The model's weights and every checkpoint, superseded ones included."""
    vocab_size = Tokenizer.load(run / "tokenizer.json").vocab_size
    with torch.device("meta"):
        model = Model(config.model, vocab_size=vocab_size)
    path = run / "model.safetensors"
    if path.exists():
        tensors = read_tensors(path)
        renamed = {_tensor_name(name, model): tensor for name, tensor in tensors.items()}
        if renamed.keys() != tensors.keys():
            write_atomically(path, tensor_bytes(renamed))
            yield str(path)
    for parent in (run / CHECKPOINTS, run / _SUPERSEDED):
        _recover(parent)
    folders = [*checkpoints(run), *sorted((run / _SUPERSEDED).glob("step-*"))]
    for folder in folders:
        try:
            saved = read_checkpoint(folder, expected_format=_FORMAT)
        except CorruptCheckpointError as error:
            yield f"{folder} is not converted: {error}"
            continue
        except UserError:  # of the current format: converted before an interruption
            continue
        _convert_checkpoint(saved, model)
        yield str(folder)


def _convert_checkpoint(saved: Checkpoint, model: Model) -> None:
    """Replace a checkpoint; the old one is removed once the new one has its name."""
    moments = {}
    for name, moment in saved.moments.items():
        key, _, parameter = name.partition(".")
        moments[f"{key}.{_tensor_name(parameter, model)}"] = moment
    new, old = (saved.path.with_name(f".{saved.path.name}{end}") for end in (_NEW, _OLD))
    write_checkpoint(
        new,
        {
            "model": {_tensor_name(name, model): t for name, t in saved.weights.items()},
            "optimizer": moments,
            "tensors": convert_training_tensors(saved.tensors, model),
        },
        _progress(saved.progress, model),
    )
    os.replace(saved.path, old)
    sync_folder(saved.path.parent)
    os.replace(new, saved.path)
    sync_folder(saved.path.parent)
    shutil.rmtree(old)


def _recover(folder: Path) -> None:
    """Restore a checkpoint's name after an interrupted conversion; remove its partial files."""
    for old in folder.glob(f".step-*{_OLD}"):
        final = old.with_name(old.name.removeprefix(".").removesuffix(_OLD))
        if final.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, final)
    for new in folder.glob(f".step-*{_NEW}"):
        shutil.rmtree(new)


def _tensor_name(name: str, model: Model) -> str:
    """The current name of a parameter, where the model has it."""
    present = weights(model)
    for old, new in _TENSORS.items():
        if name.endswith(old) and name.removesuffix(old) + new in present:
            return name.removesuffix(old) + new
    return name


def _progress(progress: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Counters unchanged; dtype and backend are part of the environment now."""
    kept = {
        name: value
        for name, value in progress.items()
        if name not in ("format", "dtype", "implementation", "circumstances")
    }
    environment = dict(progress.get("circumstances", {}))
    backend = environment.pop("kernels", "")
    backend = _BACKENDS.get(backend, backend)
    names = dict.fromkeys(model.config.mixer_names) if backend in _PORTABLE else {}
    environment["backends"] = dict.fromkeys(names, backend)
    return {**kept, "environment": environment}


def convert_training_tensors(tensors: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Random generators unchanged, the carried state with one clock for each row."""
    others = {name: t for name, t in tensors.items() if not name.startswith(_CARRIED)}
    old = {name.removeprefix(_CARRIED): t for name, t in tensors.items() if name not in others}
    layers = {
        f"layers.{name}": _layer_tensor(name, tensor)
        for name, tensor in old.items()
        if name.rpartition(".")[2] != "position"
    }
    if not layers:
        return others
    batch_size = next(iter(layers.values())).shape[0]
    state = {"position_B": old["position"].reshape(1).repeat(batch_size), **layers}
    if state.keys() != flatten(model.init_state(1)).keys():
        return others  # training resumes from an empty state
    return others | {f"{_CARRIED}{name}": tensor for name, tensor in state.items()}


def _layer_tensor(name: str, tensor: Tensor) -> Tensor:
    """Time is the second dimension now, and documents are counted from 1: 0 is padding."""
    entry = name.rpartition(".")[2]
    if entry == "document":
        return tensor + 1
    is_cache = entry in _TIME_SECOND and tensor.dim() == 4
    return tensor.transpose(1, 2) if is_cache else tensor


def _rename_superseded(run: Path) -> str:
    old, new = run / _SUPERSEDED, run / SUPERSEDED
    if new.exists() and not any(new.iterdir()):
        remove_folder(new)
    old.rename(new)
    sync_folder(run)
    return str(new)


def _without_architecture(
    described: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """What config.json has besides the settings of the model."""
    settings = values.get("model", {})
    return {name: value for name, value in described.items() if name not in settings}
