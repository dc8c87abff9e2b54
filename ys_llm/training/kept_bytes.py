"""What a training keeps of each token until its backward pass: counted, not estimated.

A model of the same width with one block of each mixer runs a few tokens forward, with weights that
were never set, while torch tells what it saves. That differs tenfold between mixers.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ys_llm.config.schema import Config
from ys_llm.model.language_model import Model
from ys_llm.ops.precision import Precision

_ROWS = (1, 2)  # whose difference leaves out what does not grow with the tokens
_MOST_TOKENS = 128  # of a row
_BACKWARD = 2.5  # times what a block keeps is what its backward pass works with; docs/planning.md


@dataclass
class _Count:
    """Bytes that are saved in blocks and outside of them; each storage counts once."""

    own: set[int]
    inside: bool = False
    blocks: int = 0
    others: int = 0
    kept: dict[int, Tensor] = field(default_factory=dict)  # or an address would come again

    def add(self, tensor: Tensor) -> Tensor:
        """Count what is saved."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own and storage.data_ptr() not in self.kept:
            self.kept[storage.data_ptr()] = tensor
            self.blocks += storage.nbytes() if self.inside else 0
            self.others += 0 if self.inside else storage.nbytes()
        return tensor


def kept_bytes(config: Config, dtype: Precision, *, seq_len: int) -> int:
    """Bytes that training needs for a token, besides the logits: kept, and worked with."""
    cycle, tokens = len(config.model.layers), min(seq_len, _MOST_TOKENS)
    small = replace(config.model, n_layers=cycle, layer_order=())
    with torch.device("meta"):
        model = Model(small, vocab_size=config.tokenizer.vocab_size)
    model.to_empty(device="cpu")
    model.select_backends(batch_size=1, precision=dtype, previous={}, timed=False)
    counts = [_counted(model, rows, tokens, dtype) for rows in _ROWS]
    grown = tokens * (_ROWS[1] - _ROWS[0])
    per_block = (counts[1][0] - counts[0][0]) / grown / cycle
    others = (counts[1][1] - counts[0][1]) / grown
    return round(per_block * (len(config.model.order) + _BACKWARD) + others)


def _counted(model: Model, rows: int, tokens: int, dtype: Precision) -> tuple[int, int]:
    """Bytes saved by blocks, and by all else."""
    count = _Count({p.untyped_storage().data_ptr() for p in model.parameters()})

    def enter(*_: Any) -> None:
        count.inside = True

    def leave(*_: Any) -> None:
        count.inside = False

    hooks = [block.register_forward_pre_hook(enter) for block in model.blocks]
    hooks += [block.register_forward_hook(leave) for block in model.blocks]
    inputs = torch.zeros(rows, tokens, dtype=torch.long)
    casts = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(count.add, _unchanged), casts:
        model(inputs, targets_BT=inputs)
    for hook in hooks:
        hook.remove()
    return count.blocks, count.others


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
