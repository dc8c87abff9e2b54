"""A prefix cache on disk: a safetensors file, of the model that wrote it alone.

States of the same shapes are the rows of one state tree, a group: `<group>.<tensor of the state>`
and, for whole prompts, `<group>.logits`. The header holds the fingerprint of what computed them,
the keys with their group and row, the least recently used first, and a digest of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ys_llm import __version__
from ys_llm.csrc import loader
from ys_llm.errors import UserError
from ys_llm.inference.prefix_cache import PrefixCache, SavedPrefix
from ys_llm.model.costs import state_bytes as expected_bytes
from ys_llm.model.language_model import Model
from ys_llm.model.state import (
    State,
    concat_rows,
    flatten,
    map_state,
    select_rows,
    state_bytes,
    tensors_of,
    to_device,
    unflatten,
)
from ys_llm.runs.model_files import LoadedRun, architecture, weights
from ys_llm.system.files import write_atomically
from ys_llm.system.machine import cpu_class

ANY_SOFTWARE = "any"  # of a state that was learned, and not computed
_FORMAT = "ys prefix cache 1"
_HEADER_BYTES = 1_000_000  # more than names and keys take beyond what the cache counts for them
_LAST_POSITION = 1 << 48  # no text is longer
DAMAGE = (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError)
_ANOTHER = "Give --cache another file; one that does not exist is made."


@dataclass(frozen=True)
class Fingerprint:
    """What a state depends on: it is refused where one of these differs."""

    model: str  # digest of architecture and weights, quantised or not
    tokenizer: str
    software: str  # versions, device, instruction set, dtypes, backends: others round differently


def fingerprint_of(loaded: LoadedRun) -> Fingerprint:
    """The fingerprint of a run as it is loaded, its weights read once."""
    digest = hashlib.sha256(json.dumps(architecture(loaded.config.model)).encode())
    _update(digest, weights(loaded.model))
    model = loaded.model
    device = next(model.parameters()).device.type
    mixers = zip(loaded.config.model.mixer_names, model.mixers, strict=True)
    backends = sorted({f"{name} {mixer.backend}" for name, mixer in mixers})
    dtypes = sorted(
        {str(weight.dtype).removeprefix("torch.") for weight in weights(model).values()}
    )
    compiled = "with" if loader.load() is not None else "without"
    software = (
        f"ys {__version__}, torch {torch.__version__}, {device}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {cpu_class()}, "
        f"{torch.get_num_threads()} threads, {compiled} compiled kernels, "
        f"{' and '.join(dtypes)}, {', '.join(backends)}"
    )
    return Fingerprint(digest.hexdigest(), loaded.tokenizer.fingerprint, software)


def save_cache(cache: PrefixCache, path: Path, fingerprint: Fingerprint) -> None:
    """Write what is in the cache, atomically; UserError where the file cannot be written."""
    groups: dict[Any, list[SavedPrefix]] = {}
    entries = []
    numbers: dict[Any, int] = {}
    for key, saved in cache.items():
        shapes = _shapes(saved)
        group = groups.setdefault(shapes, [])
        entries.append([key.hex(), numbers.setdefault(shapes, len(numbers)), len(group)])
        group.append(saved)
    tensors: dict[str, Tensor] = {}
    for number, group in enumerate(groups.values()):
        state = concat_rows([saved.state for saved in group])
        tensors |= {f"{number}.{name}": tensor for name, tensor in flatten(state).items()}
        logits = [saved.logits_V for saved in group if saved.logits_V is not None]
        tensors |= {f"{number}.logits": torch.stack(logits)} if logits else {}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    header = {"format": _FORMAT, **vars(fingerprint), "entries": json.dumps(entries)}
    header["digest"] = digest_of(tensors, header["entries"])
    write_atomically(path, safetensors.torch.save(tensors, header), create_folder=False)
    cache.changed = False


def load_cache(
    path: Path, model: Model, fingerprint: Fingerprint, *, max_bytes: int
) -> PrefixCache:
    """The cache of a file, empty where there is none.

    UserError where the file is larger than `max_bytes`, was not written by `save_cache`, is damaged
    or was written with another fingerprint.
    """
    cache = PrefixCache(max_bytes)
    if not path.exists():
        _check_folder(path)
        return cache
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        if (n_bytes := path.stat().st_size) > max_bytes + _HEADER_BYTES:
            fix = f"Allow more with --cache-mb {-(-n_bytes // 1_000_000)}, or give another file."
            raise UserError(f"{path} holds {n_bytes / 1e6:,.0f} MB of states", fix)
        header, tensors = read_states(path, _FORMAT)
        check_fingerprint(path, header, fingerprint, fix=_ANOTHER)
        for key, saved in _entries(header, tensors, model):
            cache.add(key, saved)
    except DAMAGE as error:
        problem = str(error).split("\n")[0]
        raise UserError(
            f"{path} is not a whole file of saved prompts: {problem}", _ANOTHER
        ) from error
    cache.changed = False
    return cache


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}, where {path} should be", _ANOTHER)


def read_states(path: Path, format: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file of states; one of `DAMAGE` where it is none of this format."""
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata() or {})
        if header.get("format") != format:
            raise ValueError(f"it does not say that its format is {format!r}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["digest"] != digest_of(tensors, header["entries"]):
        raise ValueError("its content is not what was written")
    return header, tensors


def check_fingerprint(
    path: Path, header: Mapping[str, str], expected: Fingerprint, *, fix: str
) -> None:
    """UserError unless the file was written with this fingerprint."""
    for field in fields(expected):
        found, own = header[field.name], getattr(expected, field.name)
        if found not in (own, ANY_SOFTWARE):
            if field.name != "software":
                found, own = found[:12], own[:12]
            problem = (
                f"{path} was written with another {field.name} (found {found}, expected {own})"
            )
            raise UserError(problem, fix)


def _entries(
    header: Mapping[str, str], tensors: Mapping[str, Tensor], model: Model
) -> list[tuple[bytes, SavedPrefix]]:
    """Keys and prefixes in the header's order; ValueError where they are not this model's."""
    numbers = {name.partition(".")[0] for name in tensors}
    groups = {number: _group(number, tensors, model) for number in numbers}
    entries = json.loads(header["entries"])
    return [(bytes.fromhex(key), groups[str(group)][row]) for key, group, row in entries]


def _group(number: str, tensors: Mapping[str, Tensor], model: Model) -> list[SavedPrefix]:
    """The prefixes of one group, each in memory of its own on the model's device."""
    prefix, device = f"{number}.", next(model.parameters()).device
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    logits_NV, like = named.pop("logits", None), model.init_state(1)
    rows = unflatten(named, like)
    n_rows = len(rows["position_B"])
    for name, empty in flatten(like).items():
        check_tensor(name, named[name], empty, n_rows)
    if logits_NV is not None:
        dtype = torch.promote_types(model.embedding.weight.dtype, torch.float32)
        check_tensor("logits", logits_NV, torch.empty(1, model.vocab_size, dtype=dtype), n_rows)
    found = []
    for row in range(n_rows):
        state = to_device(map_state(select_rows(rows, [row]), torch.clone), device)
        check_size(state, model)
        logits_V = None if logits_NV is None else logits_NV[row].clone().to(device)
        found.append(SavedPrefix(state, logits_V))
    return found


def check_tensor(name: str, tensor: Tensor, empty: Tensor, n_rows: int) -> None:
    """ValueError unless these are rows of what the model has there, of any length if it grows."""
    expected = [n_rows, *empty.shape[1:]]
    if len(expected) > 1 and expected[1] == 0 and tensor.dim() > 1:
        expected[1] = tensor.shape[1]
    if list(tensor.shape) != expected or tensor.dtype != empty.dtype:
        raise ValueError(f"{name} has another shape or type than this model's")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} is not finite")


def check_size(state: State, model: Model, *, least: int = 1) -> None:
    """ValueError unless the state has the size that it has after so many tokens."""
    position = int(state["position_B"])
    if not least <= position < _LAST_POSITION:
        raise ValueError(f"a state after {position} tokens")
    if state_bytes(state) != expected_bytes(model, batch_size=1, seq_len=position):
        raise ValueError(f"a state after {position} tokens has another size")


def _shapes(saved: SavedPrefix) -> tuple[Any, ...]:
    return saved.logits_V is None, *(tensor.shape for tensor in tensors_of(saved.state))


def digest_of(tensors: Mapping[str, Tensor], entries: str) -> str:
    """The digest of a file of states."""
    digest = hashlib.sha256(entries.encode())
    _update(digest, tensors)
    return digest.hexdigest()


def _update(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add names, types, shapes and bytes."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        if plain.numel():
            digest.update(plain.view(torch.uint8).numpy().data)
