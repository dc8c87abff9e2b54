"""The files of a post-mortem: what a bad step read and what was found, to be looked at again.

runs/<name>/post-mortem/step-XXXXXXXX.json          the finding, in a sentence and in full
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
from ys_llm.runs import checkpoint
from ys_llm.system.files import write_atomically
from ys_llm.system.machine import versions
from ys_llm.training.recovery.diagnosis import Finding, Scene, diagnose

_STATE, _WEIGHTS, _RANDOM = "state.", "weights.", "random."
_NEEDED = ("inputs_BT", "targets_BT", "starts_BT", f"{_RANDOM}cpu", f"{_WEIGHTS}embedding.weight")


def write(
    run: Path, finding: Finding, scene: Scene, *, model: Model, facts: Mapping[str, Any]
) -> Path:
    """Leave the post-mortem in the run's folder; returns the JSON file's path.

    `facts` are the caller's: `step`, and for `replay` `dtype` and `backend`; loss,
    gradient norm, learning rate, stage and index of the batch for the reader. Beside the JSON a
    safetensors file holds batch, state, random state and weights. Nothing there is overwritten.
    """
    path = _unused(run / "post-mortem", f"step-{facts['step']:08d}")
    tensors = _packed(scene) | {
        f"{_WEIGHTS}{name}": tensor for name, tensor in checkpoint.weights(model).items()
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path.with_suffix(".safetensors"), safetensors.torch.save(plain))
    code = (
        "from ys_llm.training.recovery.post_mortem import replay; "
        f"print(replay({str(path)!r}).sentence)"
    )
    described = {
        "sentence": finding.sentence,
        "finding": asdict(finding),
        **facts,
        "carry": scene.batch.carry,
        "reset_at_document": scene.starts_BT is not None,
        "weight_norms": {
            name: tensor.float().norm().item() for name, tensor in checkpoint.weights(model).items()
        },
        "versions": versions(),
        "replay": f"python -c {shlex.quote(code)}",
    }
    checkpoint.write_json(path, _plain(described))
    return path


def _unused(folder: Path, stem: str) -> Path:
    path, number = folder / f"{stem}.json", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.json", number + 1
    return path


def _packed(scene: Scene) -> dict[str, Tensor]:
    batch = scene.batch
    tensors = {
        "inputs_BT": batch.inputs_BT,
        "targets_BT": batch.targets_BT,
        "starts_BT": batch.starts_BT,
    }
    tensors |= {f"{_RANDOM}{name}": tensor for name, tensor in scene.random.items()}
    if scene.state is not None:
        tensors |= {f"{_STATE}{name}": tensor for name, tensor in flatten(scene.state).items()}
    return tensors


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def load(path: Path) -> tuple[Scene, dict[str, Tensor]]:
    """The scene and the weights of a post-mortem; `path` is that of its JSON file."""
    facts = checkpoint.read_json(path, needed=("carry", "reset_at_document"))
    source = path.with_suffix(".safetensors")
    tensors = checkpoint.read_tensors(source)
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise UserError(
            f"{source} is no post-mortem's: it holds no {missing[0]}",
            f"Name the .json beside a .safetensors that a training wrote into {path.parent}",
        )
    starts_BT, state = tensors["starts_BT"], _under(_STATE, tensors)
    weights = _under(_WEIGHTS, tensors)
    batch = Batch(tensors["inputs_BT"], tensors["targets_BT"], starts_BT, facts["carry"])
    scene = Scene(
        batch,
        unflatten(state, like=_model(path, weights).init_state(1)) if state else None,
        starts_BT if facts["reset_at_document"] else None,
        _under(_RANDOM, tensors),
    )
    return scene, weights


def _model(path: Path, weights: Mapping[str, Tensor]) -> Model:
    """The run's model, its weights random."""
    config = load_config(path.parent.parent / "config.yaml").config
    return Model(config.model, vocab_size=len(weights["embedding.weight"]))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def replay(path: str | Path) -> Finding:
    """Diagnose a post-mortem's batch anew, on CPU, with the weights it was computed with.

    Of a step that was on CUDA everything comes back but the dropout that was drawn there.
    """
    path = Path(path)
    facts = checkpoint.read_json(path, needed=("dtype", "backend", "finding"))
    scene, weights = load(path)
    model = _model(path, weights)
    checkpoint.load_weights(model, weights, path.with_suffix(".safetensors"))
    model.select_backend(
        batch_size=len(scene.batch.inputs_BT),
        precision="bf16" if facts["dtype"] == "bf16" else "fp32",
        previous=facts["backend"],
    )
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=facts["dtype"] == "bf16")
    found = diagnose(model.train(), scene, autocast=autocast)
    if found.kind == "not reproduced" and facts["finding"]["kind"] == "finite":
        return replace(found, kind="finite")
    return found
