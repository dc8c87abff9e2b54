"""A run's tensors on disk: the published model, and the checkpoints training goes on from.

    checkpoints/step-XXXXXXXX/  model.safetensors  optimizer.safetensors  tensors.safetensors
                                progress.json      SHA256SUMS (as the command sha256sum writes it)

Nothing here is unpickled: tensors are safetensors, the rest is JSON and YAML.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ys_llm import __version__
from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config, to_mapping, to_yaml
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.runs.folder import CHECKPOINTS
from ys_llm.system.files import (
    make_folder,
    readable_os_errors,
    remove_folder,
    replace_folder,
    write_atomically,
    write_synced,
)

FORMAT = 1  # of a checkpoint: raise it when an older ys would misread a newer one
_SUMS = "SHA256SUMS"
_TENSOR_FILES = ("model.safetensors", "optimizer.safetensors", "tensors.safetensors")
_CHECKPOINT_FILES = (*_TENSOR_FILES, "progress.json")
_SHOWN_DIGITS = 12  # of a digest in the model card
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's, as torch names them


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with all that is needed to use it."""

    path: Path
    config: Config
    model: Model
    tokenizer: Tokenizer
    step: int
    has_records: bool


def load_run(path: Path, *, device: str = "cpu") -> LoadedRun:
    """Read a run's best weights; refuses a tokenizer that is not the one they were trained with."""
    needed = ("tokenizer_fingerprint", "step", "has_records")
    described = read_json(path / "config.json", needed=needed)
    step = described["step"]
    if not isinstance(step, int):
        raise _unreadable(path / "config.json", f"step is {step!r}, expected a number")
    config = load_config(path / "config.yaml").config
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    check_tokenizer(path, tokenizer, str(described["tokenizer_fingerprint"]))
    model = Model(config.model, vocab_size=tokenizer.vocab_size)
    load_weights(model, read_tensors(path / "model.safetensors"), path / "model.safetensors")
    return LoadedRun(
        path,
        config,
        model.to(device).eval(),
        tokenizer,
        step,
        bool(described["has_records"]),
    )


def check_tokenizer(run: Path, tokenizer: Tokenizer, fingerprint: str) -> None:
    """Token ids mean nothing under another tokenizer: refuse it."""
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{run}/tokenizer.json is not the tokenizer this model was trained with "
            f"(found {tokenizer.fingerprint[:12]}, expected {fingerprint[:12]})",
            "Put the model's own tokenizer.json back, or train anew: ys train clean all",
        )


def save_model(
    run: Path, config: Config, model: Model, tokenizer: Tokenizer, facts: Mapping[str, Any]
) -> None:
    """Publish these weights as the run's model, with the files that other programs look for.

    `facts` goes into config.json: step, has_records and whatever the card should tell. Its
    `sources`, where there are any: `kind`, `recipe` (a digest), `model`, `model_digest`, `records`.
    """
    described = {
        "model_type": "ys",
        "architectures": ["Model"],
        "ys_version": __version__,
        "vocab_size": model.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        **facts,
        **to_mapping(config)["model"],
    }
    write_atomically(run / "config.yaml", to_yaml(config))
    write_json(run / "generation_config.json", to_mapping(config)["generate"])
    write_json(run / "config.json", described)
    write_atomically(run / "README.md", _card(config, described))
    # Last: by this file `find_run` knows a model, which is then complete.
    write_atomically(run / "model.safetensors", _tensor_bytes(weights(model)))


def _card(config: Config, described: Mapping[str, Any]) -> str:
    facts = {k: described[k] for k in ("parameters", "step", "tokens", "val_bits_per_byte")}
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items())
    tags = ", ".join(["text-generation", *dict.fromkeys(config.model.layers)])
    return (
        f"---\nlibrary_name: ys-llm\ntags: [{tags}]\n---\n\n"
        f"# {config.run}\n\nA small language model trained by ys {__version__} on "
        f"`{config.data.path}`. Use it with `ys run {config.run}`.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n{_sources(config, described.get('sources', ()))}"
        "How it was made: `config.yaml` and `metrics.jsonl`.\n"
    )


def _sources(config: Config, sources: Sequence[Mapping[str, Any]]) -> str:
    """The card's table of what was read; "" where no manifest tells."""
    if not sources:
        return ""
    rows = "".join(
        f"| {source['kind'] or 'unknown'} | {source['records']:,} | {_writer(source)} "
        f"| {source['recipe'][:_SHOWN_DIGITS]} |\n"
        for source in sources
    )
    before = config.train.init_from
    return (
        "## What it has read\n\nThe documents it was trained on, by what wrote them, as "
        "`MANIFEST.jsonl` of the corpus has it."
        + (f" Before, `{before}` was trained on others: see its card." if before else "")
        + f"\n\n| kind | records | written by | recipe |\n|---|---|---|---|\n{rows}\n"
    )


def _writer(source: Mapping[str, Any]) -> str:
    if not source["kind"]:
        return "in no manifest, or changed since"
    if not source["model"]:
        return "a program"
    digest = source["model_digest"][:_SHOWN_DIGITS]
    return f"{source['model']}, digest {digest}" if digest else source["model"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into the model; UserError where names or shapes are not the model's."""
    own = weights(model)
    odd = sorted(set(own) ^ set(tensors)) or sorted(
        name
        for name, tensor in tensors.items()
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype
    )
    if odd:
        raise UserError(
            f"{source} does not fit its config.yaml: {len(odd)} tensors differ, first {odd[0]}",
            "Put the config.yaml back that it was trained with, or train anew: ys train clean",
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, checked against its sums."""

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
    """Write `checkpoints/step-XXXXXXXX` aside, sync it, and give it its name.

    `progress` is JSON (`step` names the folder); `tensors` is whatever else must be exact: the
    state of the random generators, a carried state. Raises UserError where the disk refuses; what
    was saved before is then still there.
    """
    final = run / CHECKPOINTS / f"step-{progress['step']:08d}"
    aside = final.with_name(f".{final.name}.tmp")
    with readable_os_errors(final):
        make_folder(aside)
    sums: dict[str, str] = {}
    try:
        for name, held in (
            ("model", weights(model)),
            ("optimizer", _optimizer_tensors(model, optimizer)),
            ("tensors", tensors),
        ):
            _write_summed(aside / f"{name}.safetensors", _tensor_bytes(held), sums)
        described = {"format": FORMAT, **progress}
        _write_summed(aside / "progress.json", _json_text(described).encode(), sums)
        write_synced(aside / _SUMS, "".join(f"{sums[name]}  {name}\n" for name in sums))
        replace_folder(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # there only where something went wrong
    return final


def _write_summed(path: Path, data: bytes, sums: dict[str, str]) -> None:
    sums[path.name] = hashlib.sha256(data).hexdigest()
    write_synced(path, data)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, whole or damaged."""
    return sorted((run / CHECKPOINTS).glob("step-*"))


def remove_superseded(run: Path, *, newest: int, every: int, best_step: int) -> None:
    """Keep the `newest` checkpoints, the one of the best step, and those of each `every` steps."""
    for path in checkpoints(run)[:-newest]:
        step = int(path.name.removeprefix("step-"))
        if step != best_step and not (every and step and step % every == 0):
            remove_folder(path)


class CorruptCheckpointError(Exception):
    """A checkpoint is not what was written; says in which file and how."""


def read_checkpoint(path: Path) -> Checkpoint:
    """All of a checkpoint, each file held against its sum.

    Raises CorruptCheckpointError; UserError where a newer `ys` wrote it.
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
    if progress.get("format") != FORMAT:
        raise UserError(
            f"{path} has the checkpoint format {progress.get('format')}, and this ys "
            f"{__version__} reads {FORMAT}",
            "Use the ys that wrote it, or begin anew: ys train clean",
        )
    return Checkpoint(path, progress, *read)


def _sums(path: Path) -> dict[str, str]:
    """Expected sum of each file; a CorruptCheckpointError where there are none."""
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
    """Put a checkpoint's weights and moments into the model and its optimizer."""
    load_weights(model, saved.weights, saved.path)
    _check_moments(saved, model)
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if f"step.{name}" in saved.moments:
            optimizer.state[parameter] = {
                key: saved.moments[f"{key}.{name}"].to(parameter.device) for key in _MOMENTS
            }


def _check_moments(saved: Checkpoint, model: nn.Module) -> None:
    """AdamW would read beyond the end of a moment that is smaller than its parameter."""
    shapes: dict[str, torch.Size] = {}
    for name, parameter in model.named_parameters():
        if f"step.{name}" in saved.moments:
            shapes |= {f"{key}.{name}": parameter.shape for key in _MOMENTS}
            shapes[f"step.{name}"] = torch.Size([])
    odd = sorted(shapes.keys() ^ saved.moments.keys()) or [
        name
        for name, moment in saved.moments.items()
        if moment.shape != shapes[name] or moment.dtype != torch.float32
    ]
    if odd:
        raise UserError(
            f"{saved.path}/optimizer.safetensors does not fit the model: {len(odd)} moments "
            f"differ, first {odd[0]}",
            f"Remove {saved.path} to go on from the one before, or begin anew: ys train clean",
        )


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments by name; a parameter that has had no gradient yet has none."""
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key in _MOMENTS
    }


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    data: bytes = safetensors.torch.save(plain, metadata={"format": "pt"})
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; a UserError names one that is missing or damaged."""
    try:
        return dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from error


def read_json(path: Path, *, needed: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with at least the `needed` names; a UserError names a file that is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unreadable(path, f"found a {type(value).__name__}, expected an object")
    missing = [name for name in needed if name not in value]
    if missing:
        raise _unreadable(path, f"{missing[0]} is missing")
    return value


def _unreadable(path: Path, problem: str) -> UserError:
    run = path.parent.name
    fix = f"Train anew: ys train clean --run {run}"
    if path.name == "model.safetensors" and checkpoints(path.parent):
        fix = f"Remove it, and `ys train --run {run}` puts the last checkpoint's weights there."
    return UserError(f"{path} cannot be read ({problem})", fix)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The mapping as indented JSON, atomically."""
    write_atomically(path, _json_text(value))


def _json_text(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), indent=2) + "\n"
