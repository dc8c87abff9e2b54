"""A run's checkpoints: what training resumes from.

    checkpoints/step-XXXXXXXX/  model.safetensors  optimizer.safetensors  tensors.safetensors
                                progress.json      SHA256SUMS (as the command sha256sum writes it)

Nothing here is unpickled: tensors are safetensors, the rest is JSON and YAML.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ys_llm import __version__
from ys_llm.errors import UserError, command_line
from ys_llm.runs.folder import CHECKPOINTS, checkpoints
from ys_llm.runs.model_files import json_text, load_weights, tensor_bytes, weights
from ys_llm.system.files import (
    make_subfolder,
    readable_os_errors,
    remove_folder,
    replace_folder,
    write_synced,
)

FORMAT = 2  # of a checkpoint; increase it where old and new ys would misread each other's
_SUMS = "SHA256SUMS"
_TENSOR_FILES = ("model.safetensors", "optimizer.safetensors", "tensors.safetensors")
_CHECKPOINT_FILES = (*_TENSOR_FILES, "progress.json")
_SHOWN_DIGITS = 12  # of a digest in the model card
# AdamW's, as torch names them; a group of another optimizer names its own under `moments`.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, verified by its checksums."""

    path: Path
    progress: dict[str, Any]
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    tensors: dict[str, Tensor]


def save_checkpoint(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    progress: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Path:
    """Write `checkpoints/step-XXXXXXXX` under a temporary name, sync it, and rename it.

    `progress` is JSON (`step` names the folder); `tensors` is whatever else must be exact: the
    state of the random generators, a carried state. Raises UserError where it cannot be written;
    earlier checkpoints are then intact.
    """
    final = path_of_step(run, int(progress["step"]))
    tensors_by_file = {
        "model": trained_weights(model),
        "optimizer": optimizer_tensors(model, optimizer),
        "tensors": tensors,
    }
    write_checkpoint(final, tensors_by_file, progress)
    return final


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model; of one that is frozen in part, those that are trained."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in weights(model).items() if name not in frozen}


def path_of_step(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def write_checkpoint(
    final: Path, tensors: Mapping[str, Mapping[str, Tensor]], progress: Mapping[str, Any]
) -> None:
    """Write a checkpoint of these tensors, by file name; replaces one of the same name."""
    temporary = final.with_name(f".{final.name}.tmp")
    with readable_os_errors(final):
        make_subfolder(final.parent)
        make_subfolder(temporary)
    sums: dict[str, str] = {}
    try:
        for name, content in tensors.items():
            _write_summed(temporary / f"{name}.safetensors", tensor_bytes(content), sums)
        described = {"format": FORMAT, **progress}
        _write_summed(temporary / "progress.json", json_text(described).encode(), sums)
        write_synced(temporary / _SUMS, "".join(f"{sums[name]}  {name}\n" for name in sums))
        replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # exists only after an error


def _write_summed(path: Path, data: bytes, sums: dict[str, str]) -> None:
    sums[path.name] = hashlib.sha256(data).hexdigest()
    write_synced(path, data)


def remove_superseded(run: Path, *, newest: int, every: int, best_step: int) -> None:
    """Keep the `newest` checkpoints, the best step's, one every `every` steps; remove the rest."""
    for path in checkpoints(run)[:-newest]:
        step = int(path.name.removeprefix("step-"))
        if step != best_step and not (every and step and step % every == 0):
            remove_folder(path)


class CorruptCheckpointError(Exception):
    """A checkpoint differs from what was written; the message names the file and the reason."""


def read_checkpoint(path: Path, *, expected_format: int = FORMAT) -> Checkpoint:
    """Read a checkpoint, and verify the checksum of each file.

    Raises CorruptCheckpointError; UserError where another version of `ys` wrote it.
    """
    sums = _sums(path)
    contents = {name: _checked(path / name, sums) for name in _CHECKPOINT_FILES}
    try:
        progress = json.loads(contents["progress.json"])
        read = [safetensors.torch.load(contents[name]) for name in _TENSOR_FILES]
    except (ValueError, RecursionError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{path} does not hold a checkpoint ({error})") from error
    if not isinstance(progress, dict):
        raise CorruptCheckpointError(f"{path}/progress.json is no object")
    if (found := progress.get("format")) != expected_format:
        older = isinstance(found, int) and found < expected_format
        run = path.parent.parent.name
        raise UserError(
            f"{path} has checkpoint format {found}, and ys {__version__} reads {expected_format}",
            f"Type: {command_line('convert', run)}"
            if older
            else "Use the ys that wrote it, or train from scratch: "
            + command_line("train", "clean", run=run),
        )
    return Checkpoint(path, progress, *read)


def _sums(path: Path) -> dict[str, str]:
    """The expected checksum of each file."""
    try:
        lines = (path / _SUMS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"{path} has no readable {_SUMS}") from error
    pairs = [line.partition("  ") for line in lines]
    return {name: digest for digest, _, name in pairs}


def _checked(path: Path, sums: Mapping[str, str]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptCheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != sums.get(path.name):
        raise CorruptCheckpointError(f"{path} does not match {_SUMS}")
    return content


def restore(saved: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy a checkpoint's weights and moments into the model and its optimizer."""
    load_weights(model, saved.weights, saved.path, trained_weights(model))
    moments = _moments_by_parameter(optimizer)
    _check_moments(saved, model, moments)
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in saved.moments:
            optimizer.state[parameter] = {
                key: saved.moments[f"{key}.{name}"].to(parameter.device)
                for key in moments[parameter]
            }


def _moments_by_parameter(
    optimizer: torch.optim.Optimizer,
) -> dict[Tensor, tuple[str, ...]]:
    """What the optimizer keeps of each parameter that it trains, by name."""
    groups = optimizer.param_groups
    return {p: group.get("moments", _MOMENTS) for group in groups for p in group["params"]}


def _check_moments(
    saved: Checkpoint, model: nn.Module, moments: Mapping[Tensor, tuple[str, ...]]
) -> None:
    """Reject moments of other shapes: AdamW would read past the end of a smaller one."""
    shapes: dict[str, torch.Size] = {}
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in saved.moments:
            shapes |= {f"{key}.{name}": parameter.shape for key in moments.get(parameter, ())}
            if f"step.{name}" in shapes:
                shapes[f"step.{name}"] = torch.Size([])
    differing = sorted(shapes.keys() ^ saved.moments.keys()) or [
        name
        for name, moment in saved.moments.items()
        if moment.shape != shapes[name] or moment.dtype != torch.float32
    ]
    if differing:
        raise UserError(
            f"{saved.path}/optimizer.safetensors does not fit the model: {len(differing)} moments "
            f"differ, first {differing[0]}",
            f"Remove {saved.path} to resume from the one before, or train from scratch: "
            + command_line("train", "clean", run=saved.path.parent.parent.name),
        )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments by name; a parameter without a gradient so far has none."""
    return {
        f"{key}.{name}": moment
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, moment in optimizer.state[parameter].items()
    }
