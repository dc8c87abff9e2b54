"""What is minimised: the loss of the next token, that of a teacher's, or that of preferences.

replies      mean nats of the tokens that count; from a teacher q with weight w and temperature
             T also  w T^2 KL(q_T || p_T) + (1 - w) nats,  p_T = softmax(z / T)   Hinton et al.
             2015, "Distilling the Knowledge in a Neural Network"
preferences  mean -log sigmoid(beta ((c - c') - (r - r')))      Rafailov et al. 2023, "Direct
             Preference Optimization"; c and r are the log-probabilities of the chosen and of
             the rejected reply, c' and r' those of the base
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ys_llm.data.batches import IGNORE_INDEX, Batch
from ys_llm.data.examples import Pairs
from ys_llm.data.padded import padded_batch
from ys_llm.data.shards import Int64Array
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.state import State

_ROWS = 16  # pairs at a time where nothing is learned


class Preference(NamedTuple):
    """The loss of DPO, and the share of pairs whose chosen reply has gained more."""

    loss: Tensor
    accuracy: float


def distilled(
    model: Model,
    teacher: Model,
    batch: Batch,
    states: tuple[State | None, State | None],
    starts_BT: Tensor | None,
    mix: tuple[float, float],
) -> tuple[Tensor, State, State]:
    """The loss with a teacher, and the states of both after the batch.

    `states` are theirs before it, `mix` is (w, T). With w = 0 it is the mean of nats.
    """
    weight, temperature = mix
    logits_BTV, after = model(batch.inputs_BT, states[0], starts_BT)
    with inference_mode(teacher):
        taught_BTV, taught_after = teacher(batch.inputs_BT, states[1], starts_BT)
    is_counted = batch.targets_BT != IGNORE_INDEX
    student_NV, teacher_NV = logits_BTV[is_counted], taught_BTV.clone()[is_counted]
    nats = functional.cross_entropy(student_NV, batch.targets_BT[is_counted])
    kl = functional.kl_div(
        (student_NV / temperature).log_softmax(-1),
        (teacher_NV / temperature).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * nats + weight * temperature**2 * kl, after, taught_after


def preference_loss(gains_2: tuple[Tensor, Tensor], beta: float) -> Preference:
    """DPO's loss from how much each chosen and each rejected reply has gained over the base."""
    margins = gains_2[0] - gains_2[1]
    loss = -functional.logsigmoid(beta * margins).mean()
    return Preference(loss, float((margins > 0).float().mean()))


def log_probabilities(model: Model, batch: Batch) -> Tensor:
    """That of all tokens of each row that count, added up."""
    logits_BTV, _ = model(batch.inputs_BT)
    n_rows, targets_N = len(logits_BTV), batch.targets_BT.flatten()
    nats_N = functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_N, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return -nats_N.view(n_rows, -1).sum(1)


def both_batches(pairs: Pairs, documents: Int64Array, seq_len: int) -> tuple[Batch, Batch]:
    """The chosen and the rejected ends of these pairs."""
    chosen = padded_batch(pairs.chosen, documents, seq_len)
    return chosen, padded_batch(pairs.rejected, documents, seq_len)


def pair_loss(
    model: Model, batches: tuple[Batch, Batch], reference: Mapping[str, Tensor], beta: float
) -> Preference:
    """DPO's loss of some pairs; `reference` has the base's log-probabilities of `chosen`, ..."""
    names = ("chosen", "rejected")
    chosen, rejected = (
        log_probabilities(model, batch) - reference[name].to(batch.inputs_BT.device)
        for name, batch in zip(names, batches, strict=True)
    )
    return preference_loss((chosen, rejected), beta)


def reference_of(model: Model, pairs: Pairs, seq_len: int) -> dict[str, Tensor]:
    """The log-probabilities of all chosen and all rejected ends by this model."""
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {"chosen": [], "rejected": []}
    numbers = torch.arange(len(pairs.ids)).numpy()
    with inference_mode(model):
        for begin in range(0, len(numbers), _ROWS):
            documents = numbers[begin : begin + _ROWS]
            for name, batch in zip(found, both_batches(pairs, documents, seq_len), strict=True):
                found[name].append(log_probabilities(model, batch.to(device)).cpu())
    return {name: torch.cat(parts).clone() for name, parts in found.items()}
