"""Stages in which a few blocks learn and all else stays, as onion training has them.

    grow a trained model by identities, train the new blocks alone, then all of them, and again

What is frozen follows from the configuration and the step alone, so that a run that is resumed
freezes what it would have frozen. A frozen parameter has no gradient in its steps: the optimizer
leaves it and its moments as they are, weight decay too, and it does not count for `grad_clip`.
"""

from torch import nn

from ys_llm.config.schema import Config
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.language_model import Model


def check_blocks(config: Config) -> None:
    """Raise UserError where a stage trains a block that the model does not have."""
    n_layers = config.model.n_layers
    for stage in config.train.stages:
        missing = [number for number in stage.blocks if not 0 <= number < n_layers]
        if missing:
            raise UserError(
                f"train.stages: blocks {list(stage.blocks)} of a stage are to be trained alone, "
                f"and the model has no block {missing[0]}",
                f"Name blocks from 0 to {n_layers - 1}, or raise model.n_layers",
                exit_code=EXIT_USAGE,
            )


def freeze(model: Model, blocks: tuple[int, ...]) -> None:
    """Remove the gradients of all parameters outside these blocks; without blocks of none."""
    if not blocks:
        return
    trained: set[nn.Parameter] = set()
    for number in blocks:
        trained.update(model.blocks[number].parameters())
    for parameter in model.parameters():
        if parameter not in trained:
            parameter.grad = None
