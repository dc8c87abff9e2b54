"""Weights of a shallower run in a deeper model: the blocks that are new begin as identities.

    x + mixer(norm(x)) = x,   x + MLP(norm(x)) = x       where the last matrix of either is 0

So the deeper model begins with the loss of the shallower one, and every block can learn from its
second step on. The new ones stand together, as near to the middle of `model.order` as they can:
with an order that goes up and down again (0, 1, 2, 2, 1, 3) that is the innermost place.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ys_llm.config.schema import ModelConfig
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.channel_mix import ChannelMix
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import weights

_EXTRA = "extra_heads."


def fitted(
    model: Model, tensors: Mapping[str, Tensor], before: ModelConfig, source: Path
) -> tuple[dict[str, Tensor], range]:
    """The tensors of a run of configuration `before` for this model, and its new blocks.

    These keep the model's own weights but their last matrices, which are set to 0. Prediction heads
    but the first are those of the source where it has as many, and else new.
    """
    config = model.config
    n_new = max(0, config.n_layers - before.n_layers)
    new = range(0)
    if n_new and config.block != "plain":
        place = _place(before, config, source)
        new = range(place, place + n_new)
        _make_identities(model, new, source)
    own = weights(model)
    kept = {_moved(name, new): tensor for name, tensor in tensors.items()}
    if config.prediction_heads != before.prediction_heads:
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(_EXTRA)}
        kept |= {name: own[name] for name in own if name.startswith(_EXTRA)}
    inserted = tuple(f"blocks.{number}." for number in new)
    return kept | {name: own[name] for name in own if name.startswith(inserted)}, new


def _place(before: ModelConfig, after: ModelConfig, source: Path) -> int:
    """The number of the first new block: the old ones keep their order and their mixers."""
    n_new = after.n_layers - before.n_layers
    middle = (len(after.order) - 1) / 2

    def distance(place: int) -> float:
        """Of the new block's applications from the middle, the farthest."""
        new = range(place, place + n_new)
        return max(abs(at - middle) for at, number in enumerate(after.order) if number in new)

    for place in sorted(range(before.n_layers + 1), key=distance):
        new = range(place, place + n_new)
        old = [number for number in range(after.n_layers) if number not in new]
        order = tuple(old.index(number) for number in after.order if number not in new)
        mixers = tuple(after.mixers_of_blocks[number] for number in old)
        if (order, mixers) == (before.order, before.mixers_of_blocks):
            return place
    raise UserError(
        f"{source} has {before.n_layers} blocks, and no place is found for {n_new} more: without "
        "those its order or its mixers would be others",
        "Give model.layers and model.layer_order that are the source's where new blocks are left "
        "out",
        exit_code=EXIT_USAGE,
    )


def _moved(name: str, new: range) -> str:
    """The name of a block's tensor, where blocks have been put before it."""
    head, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if head != "blocks" or int(number) < new.start:
        return name
    return f"blocks.{int(number) + len(new)}.{inner}"


@torch.no_grad()
def _make_identities(model: Model, new: range, source: Path) -> None:
    """Set the last matrices of these blocks to 0."""
    for number in new:
        block: Any = model.blocks[number]
        if block.has_mlp:
            last = block.mlp.value if isinstance(block.mlp, ChannelMix) else block.mlp.down
            last.weight.zero_()
        mixer = getattr(block.mixer, "mixer", block.mixer)  # behind a convolution
        last = getattr(mixer, "out_proj", None)
        if isinstance(last, nn.Linear):
            last.weight.zero_()
            if last.bias is not None:
                last.bias.zero_()
        if not _writes_nothing(model, block):
            name = model.config.mixers_of_blocks[number]
            raise UserError(
                f"{source} has {model.config.n_layers - len(new)} blocks, and a new one of "
                f"{name} cannot begin as an identity",
                f"Set model.n_layers to {model.config.n_layers - len(new)}, or train anew without "
                "--init-from",
                exit_code=EXIT_USAGE,
            )


def _writes_nothing(model: Model, block: Any) -> bool:
    """Whether the mixer gives 0 for something that is not."""
    like = model.embedding.weight
    x_BTD = torch.linspace(-1, 1, like.shape[1], dtype=like.dtype, device=like.device)
    state = block.mixer.init_state(1)
    y_BTD, _ = block.mixer(x_BTD[None, None], state, None, torch.zeros(1, dtype=torch.int64))
    return not bool(y_BTD.any())
