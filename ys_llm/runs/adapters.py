"""What a fine-tuned run has instead of a model's weights: an adapter, or an initial state.

    adapter_config.json, adapter_model.safetensors    in the layout of PEFT, which reads them where
                                                      it knows all of the matrices
    initial_state.safetensors                         a session of nothing, as `--state` takes it

Either belongs to one base. Its name and the SHA-256 of its weights stand in config.json, and in the
header of an adapter's tensors, so that the two files of an adapter can go anywhere alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ys_llm.config.sft import LoraConfig
from ys_llm.errors import UserError
from ys_llm.model.lora import Adapter, Factors
from ys_llm.runs.folder import ADAPTER, ADAPTER_CONFIG, is_trained, weights_file
from ys_llm.system.files import sha256_of

_PREFIX = "base_model.model.network."  # of a name, as an export for transformers has it
_A, _B, _ROWS = ".lora_A.weight", ".lora_B.weight", "new_rows."
_STATE = "state."  # of a tensor in the file of a session
_AGAIN = "Put the adapter back as it was written."


@dataclass(frozen=True)
class Base:
    """The run that was fine-tuned: its name or path, and its weights."""

    run: str
    sha256: str
    step: int


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as it was read; `rows` are those of tokens that the base does not have."""

    adapter: Adapter
    rows: Mapping[str, Tensor]
    base: Base


def base_of(run: Path, name: str, step: int) -> Base:
    """The base that the run in this folder is."""
    return Base(name, sha256_of(weights_file(run)), step)


def find_base(run: Path, base: Base) -> Path:
    """The folder of the base of this run; UserError where it is missing, or another model now."""
    for path in (run.parent / base.run, Path(base.run)):
        if is_trained(path):
            check_base(path, base, run)
            return path
    raise UserError(
        f"{run} is an adapter of {base.run}, and there is no such model",
        f"Put it back as {run.parent / base.run}; SHA-256 of its weights: {base.sha256}",
    )


def check_base(found: Path, base: Base, run: Path) -> None:
    """UserError unless this run has the weights that another one was fine-tuned from."""
    digest = sha256_of(weights_file(found))
    if digest != base.sha256:
        raise UserError(
            f"{run} was fine-tuned from other weights of {base.run} (SHA-256 {base.sha256[:12]}, "
            f"step {base.step:,}) than {weights_file(found)} has now ({digest[:12]})",
            "Put those back, or fine-tune again from these",
        )


def adapter_files(
    adapter: Adapter, rows: Mapping[str, Tensor], lora: LoraConfig, base: Base
) -> dict[str, bytes | str]:
    """The two files of an adapter, by name; the tensors last."""
    tensors = {f"{_ROWS}{name}": tensor for name, tensor in rows.items()}
    for name, (a, b) in adapter.factors.items():
        tensors |= {f"{_PREFIX}{name}{_A}": a, f"{_PREFIX}{name}{_B}": b}
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    header = {"format": "pt", "base": json.dumps(asdict(base))}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.run,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(adapter.factors),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    return {
        ADAPTER_CONFIG: json.dumps(config, indent=2) + "\n",
        ADAPTER: safetensors.torch.save(plain, header),
    }


def read_adapter(folder: Path) -> SavedAdapter:
    """What `adapter_files` wrote, or PEFT did for an export; UserError for anything else."""
    path = folder / ADAPTER
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        scale = float(config["lora_alpha"]) / int(config["r"])
        with safe_open(path, "pt") as file:
            base = Base(**json.loads((file.metadata() or {}).get("base", _unknown(config))))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return SavedAdapter(Adapter(_factors(tensors), scale), _rows(tensors), base)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}", _AGAIN) from error
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{folder} holds no adapter ({error})", _AGAIN) from error


def initial_state_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a learned initial state, by their paths, from the file of its session."""
    return {n.removeprefix(_STATE): t for n, t in tensors.items() if n.startswith(_STATE)}


def _unknown(config: Mapping[str, Any]) -> str:
    """The base of an adapter of PEFT: its name alone is known."""
    return json.dumps(asdict(Base(str(config["base_model_name_or_path"]), "", 0)))


def _factors(tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
    names = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
    return {
        name.removeprefix(_PREFIX): Factors(tensors[f"{name}{_A}"], tensors[f"{name}{_B}"])
        for name in names
    }


def _rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(_ROWS): t for n, t in tensors.items() if n.startswith(_ROWS)}
