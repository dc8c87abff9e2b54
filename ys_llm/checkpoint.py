"""A run's folder: what is in it, how it is written so that nothing is lost, how it is read.

    runs/<name>/config.yaml             the resolved configuration
                config.json             vocabulary, tokenizer's fingerprint, step: for the reader
                model.safetensors       the weights of the best evaluation
                tokenizer.json  generation_config.json  metrics.jsonl  README.md
                cache/                  token shards
                checkpoints/step-*/     model, optimizer and progress: where training goes on

Nothing here is unpickled: tensors are safetensors, the rest is JSON and YAML.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ys_llm import __version__
from ys_llm.config import Config, load_config, to_mapping, to_yaml
from ys_llm.errors import EXIT_NO_MODEL, UserError
from ys_llm.files import sync_folder, write_atomically
from ys_llm.model import Model
from ys_llm.tokenizer import Tokenizer

KEEP = 2  # checkpoints kept: the newest, and the one before should the newest be damaged
_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "metrics.jsonl",
    "README.md",
    "checkpoints",
)
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's, as torch names them
_ALL_FILES = (*_MODEL_FILES, "config.yaml", "tokenizer.json", "cache")


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with all that is needed to use it."""

    path: Path
    config: Config
    model: Model
    tokenizer: Tokenizer
    step: int
    has_records: bool


def find_run(runs_dir: Path, name: str | None) -> Path:
    """The folder of a run by name or path, or of the one trained last; exit code 3 if none."""
    if name is None:
        found = sorted(runs_dir.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1].parent
        raise UserError(
            f"{runs_dir}/ holds no trained model", "Type: ys train", exit_code=EXIT_NO_MODEL
        )
    for path in (runs_dir / name, Path(name)):
        if (path / "model.safetensors").is_file():
            return path
    known = sorted(path.parent.name for path in runs_dir.glob("*/model.safetensors"))
    raise UserError(
        f"there is no trained model {name!r}",
        f"Choose one of: {', '.join(known)}" if known else "Type: ys train",
        exit_code=EXIT_NO_MODEL,
    )


def load_run(path: Path, *, device: str = "cpu") -> LoadedRun:
    """Read a run's best weights; refuses a tokenizer that is not the one they were trained with."""
    needed = ("tokenizer_fingerprint", "step", "has_records")
    described = read_json(path / "config.json", needed=needed)
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
        int(described["step"]),
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

    `facts` goes into config.json: step, has_records and whatever the card should tell.
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
    return (
        f"---\nlibrary_name: ys-llm\ntags: [text-generation, {config.model.mixer}]\n---\n\n"
        f"# {config.run}\n\nA small language model trained by ys {__version__} on "
        f"`{config.data.path}`. Use it with `ys run {config.run}`.\n\n"
        f"| | |\n|---|---|\n{rows}\n\nHow it was made: `config.yaml` and `metrics.jsonl`.\n"
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into the model; UserError where names or shapes are not the model's."""
    own = weights(model)
    odd = sorted(set(own) ^ set(tensors)) or sorted(
        name for name, tensor in tensors.items() if tensor.shape != own[name].shape
    )
    if odd:
        raise UserError(
            f"{source} does not fit its config.yaml: {len(odd)} tensors differ, first {odd[0]}",
            "Put the config.yaml back that it was trained with, or train anew: ys train clean",
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def save_checkpoint(
    run: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    progress: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Path:
    """Write `checkpoints/step-XXXXXXXX` aside, sync it, rename it; keep the last KEEP.

    `progress` is JSON (`step` names the folder); `tensors` is whatever else must be exact: the
    state of the random generators, a carried state.
    """
    root = run / "checkpoints"
    final = root / f"step-{progress['step']:08d}"
    aside = root / f".{final.name}.tmp"
    for unfinished in root.glob(".step-*.tmp"):  # left by a run that was killed while it saved
        shutil.rmtree(unfinished)
    aside.mkdir(parents=True)
    write_atomically(aside / "model.safetensors", _tensor_bytes(weights(model)))
    moments = _tensor_bytes(_optimizer_tensors(model, optimizer))
    write_atomically(aside / "optimizer.safetensors", moments)
    write_atomically(aside / "tensors.safetensors", _tensor_bytes(tensors))
    write_json(aside / "progress.json", progress)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    sync_folder(root)
    for old in checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in (run / "checkpoints").glob("step-*/progress.json"))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore model and optimizer; returns what `save_checkpoint` took as progress and tensors."""
    load_weights(model, read_tensors(path / "model.safetensors"), path)
    moments = read_tensors(path / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        if f"step.{name}" in moments:
            optimizer.state[parameter] = {
                key: moments[f"{key}.{name}"].to(parameter.device) for key in _MOMENTS
            }
    return read_json(path / "progress.json"), read_tensors(path / "tensors.safetensors")


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
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unreadable(path, f"found a {type(value).__name__}, expected an object")
    missing = [name for name in needed if name not in value]
    if missing:
        raise _unreadable(path, f"{missing[0]} is missing")
    return value


def _unreadable(path: Path, problem: str) -> UserError:
    folder, fix = path.parent, "Train anew: ys train clean"
    if folder.parent.name == "checkpoints":
        fix = f"Remove {folder} to go on from the checkpoint before it, or train anew."
    return UserError(f"{path} cannot be read ({problem})", fix)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The mapping as indented JSON, atomically."""
    write_atomically(path, json.dumps(dict(value), indent=2) + "\n")


def paths_to_clean(run: Path, clean: Literal["model", "all"]) -> list[Path]:
    """What `ys train clean` ("model") or `clean all` would remove: only files that a run makes."""
    if run.is_symlink():
        raise UserError(f"{run} is a link", "Remove the link itself, or name the real folder")
    names = _ALL_FILES if clean == "all" else _MODEL_FILES
    return [run / name for name in names if os.path.lexists(run / name)]


def remove(paths: list[Path]) -> None:
    """Remove files and folders; a link is removed, never followed."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
