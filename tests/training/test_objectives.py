"""The losses of preferences and of a teacher, by hand; and examples that are packed."""

from __future__ import annotations

import math

import pytest
import torch
from support.exports import shaken
from torch import Tensor

from ys_llm.config.schema import Config, ModelConfig
from ys_llm.data.batches import IGNORE_INDEX, Batch, BatchPlan, batch_at
from ys_llm.data.chat import PreferencePair, Rendered, Turn
from ys_llm.data.examples import Example, pairs_of, shard_of, too_long
from ys_llm.data.padded import documents_of_batch, padded_batch
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.evaluation.bits_per_byte import evaluate_apart, evaluate_tokens
from ys_llm.model.language_model import Model
from ys_llm.training.objectives import (
    both_batches,
    distilled,
    pair_loss,
    preference_loss,
    reference_of,
)
from ys_llm.training.steps import divisors_of

TOKENIZER = train_tokenizer(["abc"], kind="bytes", vocab_size=300).with_roles()


def model_of(*, seed: int = 0, mixer: str = "three_tier") -> Model:
    config = ModelConfig(d_model=16, n_layers=1, d_mlp=24, layers=(mixer,))
    model = shaken(Config(model=config), vocab_size=TOKENIZER.vocab_size)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def pair(question: str, chosen: str, rejected: str) -> PreferencePair:
    ends = [(Turn("assistant", text),) for text in (chosen, rejected)]
    return PreferencePair((Turn("user", question),), *ends)


PAIRS = pairs_of([pair("a?", "yes", "no way"), pair("b, c?", "no", "y")], TOKENIZER)


def log_probability(model: Model, ids: list[int], n_prompt: int) -> float:
    """Of the tokens after the prompt, one by one."""
    logits: Tensor = model(torch.tensor([ids]))[0][0].detach().log_softmax(-1)
    return sum(float(logits[t - 1, ids[t]]) for t in range(n_prompt, len(ids)))


def test_the_loss_of_preferences_is_that_by_hand() -> None:
    gains = (torch.tensor([0.5, -1.0]), torch.tensor([0.2, 1.0]))
    found = preference_loss(gains, beta=0.5)
    by_hand = -(math.log(1 / (1 + math.exp(-0.15))) + math.log(1 / (1 + math.exp(1.0)))) / 2
    assert math.isclose(float(found.loss), by_hand, rel_tol=1e-6)
    assert found.accuracy == 0.5


def test_a_step_on_preferences_compares_the_replies_alone_with_the_base() -> None:
    base, model = model_of(), model_of(seed=1)
    reference = reference_of(base, PAIRS, seq_len=32)
    documents = torch.tensor([1]).numpy()
    kept = {name: values[documents] for name, values in reference.items()}
    found = pair_loss(model, both_batches(PAIRS, documents, 32), kept, beta=0.3)
    margins = []
    for text in ("no", "y"):
        prompt = [0, TOKENIZER.controls["<user>"], *TOKENIZER.encode("b, c?")]
        prompt.append(TOKENIZER.controls["<assistant>"])
        ids = [*prompt, *TOKENIZER.encode(text), 0]
        now, before = (log_probability(m, ids, len(prompt)) for m in (model, base))
        margins.append(now - before)
    by_hand = -math.log(1 / (1 + math.exp(-0.3 * (margins[0] - margins[1]))))
    assert math.isclose(float(found.loss.detach()), by_hand, rel_tol=1e-4)
    own = pair_loss(base, both_batches(PAIRS, documents, 32), kept, beta=0.3)
    assert math.isclose(float(own.loss.detach()), math.log(2), rel_tol=1e-4)


def test_a_teacher_is_mixed_into_the_loss() -> None:
    model, teacher = model_of(), model_of(seed=1)
    inputs_BT, targets_BT = torch.randint(200, (2, 2, 12))
    targets_BT[0, 3:7] = IGNORE_INDEX
    batch = Batch(inputs_BT, targets_BT, torch.zeros_like(inputs_BT, dtype=torch.bool), False)
    plain = model(inputs_BT, targets_BT=targets_BT)[0]
    weight, heat = 0.25, 2.0
    loss, *_ = distilled(model, teacher, batch, (None, None), None, (weight, heat))
    counted = targets_BT != IGNORE_INDEX
    p, q = ((m(inputs_BT)[0][counted] / heat).log_softmax(-1) for m in (model, teacher))
    kl = (q.exp() * (q - p)).sum(-1).mean()
    expected = (1 - weight) * plain + weight * heat**2 * kl
    torch.testing.assert_close(loss, expected)
    own, *_ = distilled(model, model, batch, (None, None), None, (0.5, 1.0))
    torch.testing.assert_close(own, 0.5 * plain)


def examples(*lengths: int) -> list[Example]:
    """Conversations of these lengths, of which the second half is learned."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate(lengths):
        body = torch.randint(2, 250, (length - 1,), generator=generator).tolist()
        weights = [0.0] * (length // 2) + [1.0] * (length - length // 2 + 1)
        found.append(Example(Rendered([0, *body, 0], weights), length, f"chats.jsonl:{number}"))
    return found


@pytest.mark.parametrize("mixer", ["lru", "gated_delta", "softmax_attention"])
def test_packed_examples_have_the_losses_that_they_have_apart(mixer: str) -> None:
    # Not of a mixer whose clock is that of the row: its summaries come at other tokens.
    model, data = model_of(mixer=mixer).double(), shard_of(examples(9, 14, 5, 23, 3, 40), TOKENIZER)
    apart = evaluate_apart(model, data, seq_len=64)
    for seq_len in (8, 16, 64):
        packed = evaluate_tokens(model, data, seq_len=seq_len, batch_size=1)
        assert math.isclose(packed.loss, apart.loss, rel_tol=1e-12)
        assert packed.tokens == apart.tokens
    plan = BatchPlan("documents", 16, 2, 7, TOKENIZER.end_id, "carry")
    nats, n_tokens, state = 0.0, 0, None
    for index in range(8):
        batch = batch_at(data, plan, index)
        before = state if batch.carry else None
        loss, state = model(batch.inputs_BT, before, batch.starts_BT, targets_BT=batch.targets_BT)
        n = int((batch.targets_BT != IGNORE_INDEX).sum())
        nats, n_tokens = nats + float(loss.detach()) * n, n_tokens + n
        if n_tokens == apart.tokens:
            break
    assert n_tokens == apart.tokens
    assert math.isclose(nats / n_tokens, apart.loss, rel_tol=1e-12)


def test_a_turn_that_ends_inside_a_conversation_does_not_reset_the_state() -> None:
    ids = [0, 5, 6, 0, 7, 8, 0]  # <end> inside, after a reply
    data = shard_of([Example(Rendered(ids, [0, 0, 1, 1, 0, 1, 1]), 1, "")] * 2, TOKENIZER)
    batch = padded_batch(data, torch.tensor([0]).numpy(), 16)
    assert batch.inputs_BT[0, :6].tolist() == ids[:6]
    assert batch.targets_BT[0, :6].tolist() == [-100, 6, 0, -100, 8, 0]
    plan = BatchPlan("documents", 12, 1, 7, 0, "carry")
    assert batch_at(data, plan, 0).starts_BT[0].tolist() == [True, *[False] * 5] * 2


def test_every_epoch_reads_every_document_once() -> None:
    read = [documents_of_batch(5, 3, index, seed=1) for index in range(5)]
    order = [int(number) for batch in read for number in batch]
    epochs = [order[begin : begin + 5] for begin in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_examples_longer_than_a_row_are_counted_and_named() -> None:
    line = too_long(examples(9, 14, 23), 10, "cut")
    assert line == "2 of more than 10 tokens, cut: chats.jsonl:1 has 14; chats.jsonl:2 has 23"
    assert not too_long(examples(9, 10), 10, "cut")


def test_batches_with_more_targets_count_for_more() -> None:
    def batch(n: int) -> Batch:
        targets = torch.full((1, 8), IGNORE_INDEX)
        targets[0, :n] = 1
        return Batch(torch.zeros(1, 8), targets, torch.zeros(1, 8), False)

    assert divisors_of([batch(2), batch(6)]) == [4, 8 / 6]
    assert divisors_of([batch(3), batch(3)]) == [2, 2]
    assert divisors_of([batch(0), batch(4)]) == [math.inf, 1]
