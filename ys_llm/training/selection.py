"""Training on the tokens of a batch that are worth it, by the losses of a reference run.

Source: Lin et al. 2024, "Rho-1: Not All Tokens Are What You Need", after Mindermann et al. 2022.

    excess_t = nats_t(model) - nats_t(reference)

Of all targets that count, the share `train.select_fraction` with the highest excess is trained:
what the model does not know yet and the reference says can be known. The others are IGNORE_INDEX
from there on; the model reads them all the same. Both losses are computed before the step, without
dropout, so that a step costs one forward pass of each more.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ys_llm.data.batches import IGNORE_INDEX, Batch
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.state import State, concat_rows, map_state, select_rows

_LOGITS = 1 << 22  # numbers at a time: 16 MiB in float32


class Selected(NamedTuple):
    """What was selected: a share of the targets that count, and means in nats per token."""

    share: float
    loss_of_all: float  # of all targets that count
    excess: float  # of the selected ones


def select(
    model: Model,
    reference: Model,
    batch: Batch,
    states: tuple[State | None, State | None],
    starts_BT: Tensor | None,
    *,
    fraction: float,
) -> tuple[Batch, State, Selected]:
    """The batch with the targets to train, the reference's state after it, and what was selected.

    `states` are those of the model and of the reference before the batch.
    """
    nats_BT, _ = target_nats(model, batch, states[0], starts_BT)
    expected_BT, after = target_nats(reference, batch, states[1], starts_BT)
    counts_BT = batch.targets_BT != IGNORE_INDEX
    n_counted = int(counts_BT.sum())
    n_selected = min(n_counted, max(1, round(fraction * n_counted)))
    excess_BT = (nats_BT - expected_BT).masked_fill(~counts_BT, -torch.inf)
    highest, places = excess_BT.flatten().topk(n_selected)
    is_selected = torch.zeros(counts_BT.numel(), dtype=torch.bool, device=counts_BT.device)
    is_selected[places] = True
    targets_BT = batch.targets_BT.where(is_selected.view_as(counts_BT), IGNORE_INDEX)
    selected = Selected(
        n_selected / max(1, n_counted),
        float(nats_BT.sum()) / max(1, n_counted),
        float(highest.mean()) if n_selected else 0.0,
    )
    return replace(batch, targets_BT=targets_BT), after, selected


def target_nats(
    model: Model, batch: Batch, state: State | None, starts_BT: Tensor | None
) -> tuple[Tensor, State]:
    """The loss of each target, B x T, 0 where it is IGNORE_INDEX, and the state after the batch."""
    n_rows, n_tokens = batch.inputs_BT.shape
    size = max(1, _LOGITS // (n_tokens * model.vocab_size))
    nats, states = [], []
    with inference_mode(model):
        for begin in range(0, n_rows, size):
            rows = slice(begin, begin + size)
            before = None if state is None else select_rows(state, rows)
            starts = None if starts_BT is None else starts_BT[rows]
            logits_BTV, after = model(batch.inputs_BT[rows], before, starts)
            targets_N = batch.targets_BT[rows].flatten()
            losses_N = functional.cross_entropy(
                logits_BTV.flatten(0, 1), targets_N, ignore_index=IGNORE_INDEX, reduction="none"
            )
            nats.append(losses_N.view(-1, n_tokens))
            states.append(after)
    # Copies outside of inference mode, as tensors that were made in it can take no gradient.
    joined: State = map_state(concat_rows(states), torch.clone)
    return torch.cat(nats).clone(), joined


def mean_of(selected: list[Selected]) -> dict[str, float]:
    """The fields of a row of metrics, means over the batches of a step; none where none was."""
    if not selected:
        return {}
    share, loss, excess = (sum(column) / len(selected) for column in zip(*selected, strict=True))
    return {"selected_fraction": share, "loss_of_all_tokens": loss, "excess_loss": excess}
