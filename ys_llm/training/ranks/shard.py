"""FSDP2: each process keeps a part of every weight, gradient and moment, and gathers whole blocks.

Checkpoints and published models are whole: the first process gathers them, tensor by tensor.
Outside a pass a parameter is a DTensor, of which each process has its local part. torch's modules
for them take half as long to import as torch itself, and are imported where a model is sharded.
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ys_llm.model.language_model import Model
from ys_llm.runs.checkpoint import optimizer_tensors
from ys_llm.runs.model_files import weights
from ys_llm.training.ranks.group import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(model: Model, ranks: Ranks, device: torch.device) -> None:
    """Leave this process its part of every parameter; blocks are gathered one at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # That an op in place on what a block returns would go wrong: there is none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (ranks.size,))
    further = () if model.cross_decoder is None else model.cross_decoder.blocks
    for block in (*model.blocks, *further):
        fully_shard(block, mesh=mesh)
    # Else embedding and head stay gathered after an evaluation, and their moments are not saved.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def part_like(parameter: Tensor, whole: Tensor) -> "DTensor":
    """The part of a whole tensor that this process has of the parameter."""
    from torch.distributed.tensor import distribute_tensor

    like = cast("DTensor", parameter)
    moved = whole.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def assign(parameter: Tensor, whole: Tensor) -> None:
    """Copy this process' part of a whole tensor into a parameter."""
    local(parameter).detach().copy_(local(part_like(parameter, whole)))


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes, which all come here."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The whole tensors on the CPU of the first process, one at a time; {} on the others."""
    kept: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            gathered = whole(tensor.detach())
            if ranks.is_first:
                kept[name] = gathered.cpu()
    return kept


def whole_files(
    model: Model, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> dict[str, Mapping[str, Tensor]]:
    """Weights and moments as the files of a checkpoint have them; see `whole_tensors`."""
    return {
        "model": whole_tensors(weights(model), ranks),
        "optimizer": whole_tensors(optimizer_tensors(model, optimizer), ranks),
    }
