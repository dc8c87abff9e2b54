"""A run's published model: its files, written by training and read by everything else.

Nothing here is unpickled: tensors are safetensors, the rest is JSON and YAML.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ys_llm import __version__
from ys_llm.config.schema import Config, ModelConfig
from ys_llm.config.sources import load_config, to_mapping, to_yaml
from ys_llm.config.strict_reader import parse_dataclass, to_plain
from ys_llm.data.chat import TOKEN_OF_ROLE, rows_to_begin_as
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError, command_line
from ys_llm.mixers.protocol import mixer_module
from ys_llm.model.language_model import Model
from ys_llm.model.layers import RMS_EPS
from ys_llm.model.lora import Adapters, adapter_of, new_rows_of, place_new_rows
from ys_llm.model.vocabulary import with_more_tokens
from ys_llm.runs.adapters import Base, adapter_files, find_base, initial_state_of, read_adapter
from ys_llm.runs.card import model_card
from ys_llm.runs.folder import ADAPTER, MODEL, checkpoints, weights_file
from ys_llm.system.files import write_atomically


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with everything needed to use it."""

    path: Path
    config: Config
    model: Model
    tokenizer: Tokenizer
    step: int
    has_records: bool

    @property
    def chats(self) -> bool:
        """Whether its prompts are turns of a conversation, written with the tokens of roles."""
        tuned = self.config.sft.method != "none"
        return tuned and self.has_records and self.tokenizer.has_roles

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer: `<end>` and, where the model chats, those of the roles."""
        roles = TOKEN_OF_ROLE.values() if self.chats else ()
        return frozenset(
            [self.tokenizer.end_id, *(self.tokenizer.controls[role] for role in roles)]
        )


def load_run(path: Path, *, device: torch.device | str = "cpu") -> LoadedRun:
    """Read a run's best weights; rejects a tokenizer other than the one they were trained with."""
    needed = ("tokenizer_fingerprint", "step", "has_records")
    described = read_json(path / "config.json", needed=needed)
    step = described["step"]
    if not isinstance(step, int):
        raise _unreadable(path / "config.json", f"step is {step!r}, expected a number")
    config = load_config(path / "config.yaml").config
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    check_tokenizer(path, tokenizer, str(described["tokenizer_fingerprint"]))
    model = _model_of(path, config, tokenizer, described)
    return LoadedRun(
        path,
        config,
        model.to(device).eval(),
        tokenizer,
        step,
        bool(described["has_records"]),
    )


def _model_of(
    path: Path, config: Config, tokenizer: Tokenizer, described: Mapping[str, Any]
) -> Model:
    """The model with its weights: the run's own, or its base's with what was learned there."""
    source = weights_file(path)
    if source.name == MODEL:
        model = Model(config.model, vocab_size=tokenizer.vocab_size)
        load_weights(model, read_tensors(source), source)
        return model
    return _fine_tuned(path, tokenizer, source, described)


def _fine_tuned(
    path: Path, tokenizer: Tokenizer, source: Path, described: Mapping[str, Any]
) -> Model:
    try:
        base = Base(**described["base"])
    except (LookupError, TypeError) as error:
        raise _unreadable(path / "config.json", f"base is missing or incomplete: {error}") from None
    loaded = load_run(find_base(path, base))
    model = with_vocabulary(loaded, tokenizer)
    if source.name == ADAPTER:
        saved = read_adapter(path)
        Adapters(model).use([saved.adapter])
        place_new_rows(model, saved.rows)
    else:
        load_initial_state(model, read_tensors(source), source)
    return model


def with_vocabulary(base: LoadedRun, tokenizer: Tokenizer) -> Model:
    """The base's model with rows for the tokens that this tokenizer has beyond the base's."""
    if tokenizer.vocab_size == base.tokenizer.vocab_size:
        return base.model
    model = Model(base.config.model, vocab_size=tokenizer.vocab_size)
    like = rows_to_begin_as(base.tokenizer, tokenizer)
    load_weights(model, with_more_tokens(weights(base.model), like), base.path / MODEL)
    return model


def load_initial_state(model: Model, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Give the model a learned initial state; UserError where it is that of another model."""
    learned = model.learn_initial_state().named()
    found = initial_state_of(tensors)
    differing = [n for n, own in learned.items() if n not in found or found[n].shape != own.shape]
    if differing:
        raise _unreadable(source, f"{differing[0]} is not that of the model")
    with torch.no_grad():
        for name, own in learned.items():
            own.copy_(found[name])
    model.requires_grad_(False)


def check_tokenizer(run: Path, tokenizer: Tokenizer, fingerprint: str) -> None:
    """Reject a tokenizer of another model: its token ids mean something else."""
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{run}/tokenizer.json is not the tokenizer this model was trained with "
            f"(found {tokenizer.fingerprint[:12]}, expected {fingerprint[:12]})",
            f"Put the model's own tokenizer.json back, or train from scratch: {_clean(run, 'all')}",
        )


def save_model(
    run: Path, config: Config, model: Model, tokenizer: Tokenizer, facts: Mapping[str, Any]
) -> None:
    """Publish these weights as the run's model, with the files that other programs expect.

    `facts` goes into config.json: step, has_records and what the card shows. Each of its `sources`
    has `kind`, `recipe` (a digest), `model`, `model_digest` and `records`.
    """
    described = {
        "model_type": "ys",
        "architectures": ["Model"],
        "ys_version": __version__,
        "vocab_size": model.vocab_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        **facts,
        **architecture(config.model),
    }
    contents: dict[str, bytes | str] = {
        "config.yaml": to_yaml(config),
        "generation_config.json": json_text(to_mapping(config)["generate"]),
        "config.json": json_text(described),
        "README.md": model_card(config, described),
        # Last: `find_run` recognises a model by this file, and it is then complete.
        **_weights_files(config, model, described),
    }
    for name, content in contents.items():
        write_atomically(run / name, content, create_folder=False)


def _weights_files(
    config: Config, model: Model, described: Mapping[str, Any]
) -> dict[str, bytes | str]:
    """The weights, or of a fine-tuned model what it has learned, by the names of their files.

    A learned initial state is written by training, as a session.
    """
    if config.sft.method == "lora":
        base, rows = Base(**described["base"]), new_rows_of(model)
        return adapter_files(adapter_of(model), rows, config.sft.lora, base)
    return {} if config.sft.method == "state" else {MODEL: tensor_bytes(weights(model))}


def architecture(config: ModelConfig) -> dict[str, Any]:
    """The model in full, as config.json has it: every option and constant its equations need."""
    modules = {name: mixer_module(name) for name in dict.fromkeys(config.layers)}
    options = {
        name: parse_dataclass(module.Options, config.options.get(name, {}), where=name)
        for name, module in modules.items()
    }
    constants = {name: getattr(module, "CONSTANTS", {}) for name, module in modules.items()}
    described = to_plain(config)
    del described["size"]  # a name for what stands beside it
    return {
        **described,
        "options": to_plain(options),
        "constants": constants,
        "norm": "rms_norm",
        "norm_eps": RMS_EPS,
        "mlp": config.mlp if config.d_mlp else "none",
    }


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def load_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    source: Path,
    own: Mapping[str, Tensor] | None = None,
) -> None:
    """Copy tensors into the model, or into those of it that are `own`.

    UserError where names or shapes are not the model's.
    """
    own = weights(model) if own is None else own
    differing = sorted(set(own) ^ set(tensors)) or sorted(
        name
        for name, tensor in tensors.items()
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype
    )
    if differing:
        raise UserError(
            f"{source} does not fit its config.yaml: {len(differing)} tensors "
            f"differ, first {differing[0]}",
            "Put back the config.yaml that it was trained with, or train from scratch: "
            f"{_clean(source.parent)}",
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file with these tensors."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    data: bytes = safetensors.torch.save(plain, metadata={"format": "pt"})
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises UserError where it is missing or damaged."""
    try:
        return dict(safetensors.torch.load(path.read_bytes()))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, str(error)) from error


def read_json(path: Path, *, needed: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with at least the `needed` names; raises UserError for anything else."""
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
    run = path.parent
    fix = f"Train from scratch: {_clean(run)}"
    if path.name == "model.safetensors" and checkpoints(run):
        command = command_line("train", run=run.name)
        fix = f"Remove it, and `{command}` writes the last checkpoint's weights there."
    return UserError(f"{path} cannot be read ({problem})", fix)


def _clean(run: Path, *words: str) -> str:
    """The command that trains a run from scratch."""
    return command_line("train", "clean", *words, run=run.name)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write the mapping as indented JSON, atomically, into a folder that exists."""
    write_atomically(path, json_text(value), create_folder=False)


def json_text(value: Mapping[str, Any]) -> str:
    """The mapping as indented JSON."""
    return json.dumps(dict(value), indent=2) + "\n"
