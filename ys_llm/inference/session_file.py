"""A session on disk: the state of a text, in a safetensors file, of the model that wrote it alone.

`state.<tensor>` and `logits`; the header holds the fingerprint of what computed them, the end of
the text, and a digest. After loading, the next token follows without anything being read again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ys_llm.errors import UserError
from ys_llm.inference.compiled_sampling import PENALTY_WINDOW
from ys_llm.inference.generate import Prefilled
from ys_llm.inference.memories import Muted
from ys_llm.inference.prefix_file import (
    DAMAGE,
    Fingerprint,
    check_fingerprint,
    check_size,
    check_tensor,
    digest_of,
    read_states,
)
from ys_llm.inference.session import TAIL_IDS, Session, Snapshot
from ys_llm.model.language_model import Model
from ys_llm.model.state import flatten, map_state, to_device, unflatten
from ys_llm.runs.folder import STATES
from ys_llm.system.files import write_atomically

SUFFIX = ".safetensors"
_FORMAT = "ys session 1"
_NAME = re.compile(r"\w[\w.-]{0,99}")
_ANOTHER = "Load a state that this model has saved."


def state_path(run: Path, name: str) -> Path:
    """Where a run keeps the state of this name; UserError for what is no name."""
    if not _NAME.fullmatch(name):
        problem = f"{name[:100]!r} is no name"
        raise UserError(problem, "Use letters, digits, and . _ - between them.")
    return run / STATES / f"{name}{SUFFIX}"


def saved_states(run: Path) -> list[str]:
    """The names of the states that were saved."""
    return sorted(path.name.removesuffix(SUFFIX) for path in (run / STATES).glob(f"[!.]*{SUFFIX}"))


def save_session(session: Session, path: Path, fingerprint: Fingerprint) -> int:
    """Write what the session stands at, atomically; the bytes written.

    UserError where nothing was read yet, or where the file cannot be written.
    """
    if session.at.now is None:
        raise UserError("nothing was read yet: there is no state to save", "Type a text first.")
    return save_snapshot(session.at, session.muted, path, fingerprint)


def save_snapshot(at: Snapshot, muted: Muted, path: Path, fingerprint: Fingerprint) -> int:
    """Write what a session may begin from, atomically; the bytes written."""
    now = at.now
    assert now is not None
    tensors = {f"state.{name}": tensor for name, tensor in flatten(now.state).items()}
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    tensors["logits"] = now.logits_V.contiguous().cpu()
    described = {
        "recent": now.recent,
        "tail": at.tail,
        "muted": sorted(muted),
    }
    header = {"format": _FORMAT, **vars(fingerprint), "entries": json.dumps(described)}
    header["digest"] = digest_of(tensors, header["entries"])
    content = safetensors.torch.save(tensors, header)
    write_atomically(path, content)
    return len(content)


def load_session(path: Path, model: Model, fingerprint: Fingerprint) -> tuple[Snapshot, Muted]:
    """What was saved, and which memories were muted.

    UserError where there is no such file, where it was not written by `save_session`, is damaged
    or was written with another fingerprint.
    """
    if not path.exists():
        known = saved_states(path.parent.parent) if path.parent.name == STATES else []
        fix = f"Choose one of: {', '.join(known)}" if known else "Save one first, with /save NAME."
        raise UserError(f"there is no saved state {path.name.removesuffix(SUFFIX)}", fix)
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        header, tensors = read_states(path, _FORMAT)
        check_fingerprint(path, header, fingerprint, fix=_ANOTHER)
        return _snapshot(json.loads(header["entries"]), tensors, model)
    except DAMAGE as error:
        problem = str(error).split("\n")[0]
        raise UserError(f"{path} is not a whole saved state: {problem}", _ANOTHER) from error


def _snapshot(described: Any, tensors: dict[str, Tensor], model: Model) -> tuple[Snapshot, Muted]:
    """ValueError where this is no state of the model."""
    logits_V, like = tensors.pop("logits"), model.init_state(1)
    state = unflatten({name.removeprefix("state."): t for name, t in tensors.items()}, like)
    for name, empty in flatten(like).items():
        check_tensor(name, tensors[f"state.{name}"], empty, 1)
    dtype = torch.promote_types(model.embedding.weight.dtype, torch.float32)
    check_tensor("logits", logits_V[None], torch.empty(1, model.vocab_size, dtype=dtype), 1)
    check_size(state, model, least=0)  # 0: a learned initial state
    device = next(model.parameters()).device
    state = to_device(map_state(state, torch.clone), device)
    recent = _ids(described["recent"], PENALTY_WINDOW, model)
    tail, n_tokens = _ids(described["tail"], TAIL_IDS, model), int(state["position_B"])
    muted = frozenset(described["muted"])
    if not muted <= flatten(like).keys():
        raise ValueError("it names memories that this model does not have")
    now = Prefilled(logits_V.clone().to(device), state, recent, n_tokens)
    return Snapshot(now, tail), muted


def _ids(found: Sequence[Any], most: int, model: Model) -> tuple[int, ...]:
    """ValueError unless these are at most so many ids."""
    if len(found) > most or not all(type(id) is int and 0 <= id < model.vocab_size for id in found):
        raise ValueError("the ids of its text are none of this model's")
    return tuple(found)
