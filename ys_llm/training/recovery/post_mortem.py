"""The files of a post-mortem: what a failed step read, and its diagnosis, for replay.

runs/<name>/post-mortem/step-XXXXXXXX.json          the diagnosis, in a sentence and in full
                        step-XXXXXXXX.safetensors   batch, state, random state and weights
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ys_llm.config.sources import load_config
from ys_llm.data.batches import Batch
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.model.state import flatten, unflatten
from ys_llm.runs import model_files
from ys_llm.runs.folder import POST_MORTEM
from ys_llm.system.files import make_subfolder, readable_os_errors, write_atomically
from ys_llm.system.machine import versions
from ys_llm.training.recovery.diagnosis import StepInputs, diagnose
from ys_llm.training.recovery.report import Diagnosis

_STATE, _WEIGHTS, _RANDOM = "state.", "weights.", "random."
_NEEDED = ("inputs_BT", "targets_BT", "starts_BT", f"{_RANDOM}cpu", f"{_WEIGHTS}embedding.weight")


def write(
    folder: Path,
    diagnosis: Diagnosis,
    inputs: StepInputs,
    *,
    model: Model,
    facts: Mapping[str, Any],
) -> Path:
    """Write the post-mortem to the run's folder; returns the path of its JSON file.

    `facts` come from the caller: `step`; `dtype` and `backends` for `replay`; loss, gradient norm,
    learning rate, stage and batch index for the reader. A safetensors file with the same name has
    batch, state, random state and weights. No file is overwritten.
    """
    path = _unused_path(folder / POST_MORTEM, f"step-{facts['step']:08d}")
    tensors = _tensors(inputs) | {
        f"{_WEIGHTS}{name}": tensor for name, tensor in model_files.weights(model).items()
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with readable_os_errors(path):
        make_subfolder(path.parent)
    weights = safetensors.torch.save(plain)
    write_atomically(path.with_suffix(".safetensors"), weights, create_folder=False)
    code = (
        "from ys_llm.training.recovery.post_mortem import replay; "
        f"print(replay({str(path)!r}).sentence)"
    )
    described = {
        "sentence": diagnosis.sentence,
        "diagnosis": asdict(diagnosis),
        **facts,
        "carry": inputs.batch.carry,
        "reset_at_document": inputs.starts_BT is not None,
        "weight_norms": {
            name: tensor.float().norm().item()
            for name, tensor in model_files.weights(model).items()
            for name, tensor in model_files.weights(model).items()
        },
        "versions": versions(),
        "replay": f"python -c {shlex.quote(code)}",
    }
    model_files.write_json(path, _json_safe(described))
    return path


def _unused_path(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.json", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.json", number + 1
    return path


def _tensors(inputs: StepInputs) -> dict[str, Tensor]:
    batch = inputs.batch
    tensors = {
        "inputs_BT": batch.inputs_BT,
        "targets_BT": batch.targets_BT,
        "starts_BT": batch.starts_BT,
    }
    tensors |= {f"{_RANDOM}{name}": tensor for name, tensor in inputs.random.items()}
    if inputs.state is not None:
        tensors |= {f"{_STATE}{name}": tensor for name, tensor in flatten(inputs.state).items()}
    return tensors


def _json_safe(value: Any) -> Any:
    """NaN and infinity as text: JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def load(path: Path) -> tuple[StepInputs, dict[str, Tensor]]:
    """Inputs and weights of a post-mortem; `path` is that of its JSON file."""
    facts = model_files.read_json(path, needed=("carry", "reset_at_document"))
    source = path.with_suffix(".safetensors")
    tensors = model_files.read_tensors(source)
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise UserError(
            f"{source} is not a post-mortem: it lacks {missing[0]}",
            f"Name a .json that training wrote to {path.parent}, with its .safetensors.",
        )
    starts_BT, state = tensors["starts_BT"], _with_prefix(_STATE, tensors)
    weights = _with_prefix(_WEIGHTS, tensors)
    batch = Batch(tensors["inputs_BT"], tensors["targets_BT"], starts_BT, facts["carry"])
    inputs = StepInputs(
        batch,
        unflatten(state, like=_model(path, weights).init_state(1)) if state else None,
        starts_BT if facts["reset_at_document"] else None,
        _with_prefix(_RANDOM, tensors),
    )
    return inputs, weights


def _model(path: Path, weights: Mapping[str, Tensor]) -> Model:
    """The run's model, with random weights."""
    config = load_config(path.parent.parent / "config.yaml").config
    return Model(config.model, vocab_size=len(weights["embedding.weight"]))


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def replay(path: str | Path) -> Diagnosis:
    """Diagnose the batch of a post-mortem again, on CPU, with the weights of its step.

    A step that ran on CUDA is reproduced except for its dropout masks.
    """
    path = Path(path)
    facts = model_files.read_json(path, needed=("dtype", "backends", "diagnosis"))
    inputs, weights = load(path)
    model = _model(path, weights)
    model_files.load_weights(model, weights, path.with_suffix(".safetensors"))
    model.select_backends(
        batch_size=len(inputs.batch.inputs_BT),
        precision="bf16" if facts["dtype"] == "bf16" else "fp32",
        previous=facts["backends"],
    )
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=facts["dtype"] == "bf16")
    diagnosis = diagnose(model.train(), inputs, autocast=autocast)
    if diagnosis.kind == "not reproduced" and facts["diagnosis"]["kind"] == "finite":
        return replace(diagnosis, kind="finite")
    return diagnosis
