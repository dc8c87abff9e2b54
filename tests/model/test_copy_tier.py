"""The copy tier of every mixer: its equation, the split law, document starts, losses and costs."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.flops import counted_flops
from torch import Tensor

from ys_llm.config.schema import CopyConfig, ModelConfig
from ys_llm.csrc import loader
from ys_llm.mixers.protocol import mixer_names
from ys_llm.model.costs import flops_per_token, parameters_by_part, state_bytes
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.model.quantize import quantize_linears
from ys_llm.model.state import concat_rows, select_rows, tensors_of
from ys_llm.model.state import state_bytes as bytes_of

# States of ys_v0_1 and ys_v0_2 grow, and differences of the last bit with them.
SAME = {"rtol": 1e-6, "atol": 1e-6}
V, T, D, WIDTH = 12, 40, 16, 8
STARTS = (0, 7, 8, 25)

every_mixer = pytest.mark.parametrize("mixer", mixer_names())
# (window, keep, gate): a window of 9 holds 2 of the latest tokens and 6 of those before.
SIZES = [
    (1, "recent", "sentinel"),
    (5, "recent", "separate"),
    (64, "recent", "sentinel"),
    (9, "surprising", "sentinel"),
    (64, "surprising", "separate"),
]
# All sizes behind one mixer, one behind the others: the tier sees what the head reads, no mixer.
every_mixer_and_size = pytest.mark.parametrize(
    ("mixer", "window", "keep", "gate"),
    [
        (mixer, *size)
        for mixer in mixer_names()
        for size in (SIZES if mixer == "three_tier" else SIZES[3:4])
    ],
)


def model_of(
    mixer: str = "three_tier",
    window: int = 5,
    keep: Any = "recent",
    gate: Any = "sentinel",
    **changes: Any,
) -> Model:
    settings = {"d_model": D, "n_layers": 2, "d_mlp": 24, "layers": (mixer,), **changes}
    tier = CopyConfig(window, WIDTH, keep, gate)
    model = Model(ModelConfig(copy=tier, **settings), vocab_size=V).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if name == "copy_tier.gate.bias":
                parameter.fill_(0.5)  # most of the probability is copied
    return model


def some_tokens(n_rows: int = 2) -> Tensor:
    return torch.randint(V, (n_rows, T))


def starts_at(*positions: int) -> Tensor:
    starts_BT = torch.zeros(2, T, dtype=torch.bool)
    starts_BT[:, list(positions)] = True
    return starts_BT


def by_the_book(model: Any, tokens_T: Tensor, starts: tuple[int, ...]) -> Tensor:
    """log p, token by token, from what the head reads."""
    read: list[Tensor] = []
    handle = model.final_dropout.register_forward_hook(lambda *call: read.append(call[2][0]))
    starts_1T = torch.zeros(1, T, dtype=torch.bool)
    starts_1T[0, list(starts)] = True
    model(tokens_T[None], starts_BT=starts_1T)
    handle.remove()
    (h_TD,), tier, window = read, model.copy_tier, model.config.copy.window
    recent = window // 4 if model.config.copy.keep == "surprising" else window
    e_TD = model.embedding.weight[tokens_T]
    e_TD = e_TD / e_TD.square().mean(-1, keepdim=True).sqrt()
    before_TD = torch.cat([torch.zeros_like(h_TD[:1]), h_TD[:-1]])
    before_TD[list(starts)] = 0
    keys = before_TD @ tier.key.weight.t() + e_TD @ tier.token_key.weight.t()

    def told(t: int, seen: list[int]) -> Tensor:
        """What is predicted after token t from these tokens."""
        scores = torch.stack([h_TD[t] @ tier.query.weight.t() @ keys[s] / WIDTH**0.5 for s in seen])
        said = h_TD[t] @ tier.gate.weight[0] + tier.gate.bias[0]
        if tier.has_sentinel:
            rest, *copied = torch.cat([said[None], scores]).softmax(0)
        else:
            rest, *copied = 1 - torch.sigmoid(said), *(torch.sigmoid(said) * scores.softmax(0))
        p = rest * F.softmax(model.output(h_TD[t]), -1)
        return p.index_add(0, tokens_T[seen], torch.stack(copied))

    logs, seen, surprise = [], list[int](), list[float]()
    for t in range(T):
        is_first = t == 0 or t in starts
        seen = [t] if is_first else [*seen, t]
        latest = [s for s in seen[:-1] if s >= t - recent] or [t - 1]
        surprise.append(0 if is_first else -told(t - 1, latest)[tokens_T[t]].log().item())
        logs.append(told(t, seen).log())
        if len(seen) == window:  # one too many for the state
            old = seen if recent == window else [s for s in seen if s <= t - recent]
            least = min(surprise[s] for s in old)
            seen.remove(old[0] if old is seen else max(s for s in old if surprise[s] == least))
    return torch.stack(logs)


@every_mixer_and_size
@torch.no_grad()
def test_it_equals_the_equation(mixer: str, window: int, keep: str, gate: str) -> None:
    model, tokens_BT = model_of(mixer, window, keep, gate), some_tokens()
    logits_BTV, _ = model(tokens_BT, starts_BT=starts_at(*STARTS))
    for row, tokens_T in enumerate(tokens_BT):
        torch.testing.assert_close(logits_BTV[row], by_the_book(model, tokens_T, STARTS), **SAME)
    torch.testing.assert_close(logits_BTV.exp().sum(-1), torch.ones(2, T).double(), **SAME)


@every_mixer_and_size
@torch.no_grad()
def test_pieces_with_the_carried_state_equal_one_pass(
    mixer: str, window: int, keep: str, gate: str
) -> None:
    model, tokens_BT = model_of(mixer, window, keep, gate), some_tokens()
    starts_BT = starts_at(*STARTS)
    starts_BT[1] = False  # a row of documents, and one of a single document
    targets_BT = some_tokens()
    expected, last = model(tokens_BT, starts_BT=starts_BT)
    nats_BT = F.cross_entropy(expected.transpose(1, 2), targets_BT, reduction="none")
    for bounds in ((0, 7, 8, 30, T), tuple(range(T + 1)), (0, 1, T)):
        state, lossy = None, None
        for begin, end in pairwise(bounds):
            part = slice(begin, end)
            logits, state = model(tokens_BT[:, part], state, starts_BT[:, part])
            torch.testing.assert_close(logits, expected[:, part], **SAME)
            targets = targets_BT[:, part]
            loss, lossy = model(tokens_BT[:, part], lossy, starts_BT[:, part], targets_BT=targets)
            torch.testing.assert_close(loss, nats_BT[:, part].mean(), **SAME)
        for found in (state, lossy):
            for ours, theirs in zip(tensors_of(found), tensors_of(last), strict=True):
                torch.testing.assert_close(ours, theirs, **SAME)


every_keep = pytest.mark.parametrize("keep", ["recent", "surprising"])
every_gate = pytest.mark.parametrize("gate", ["sentinel", "separate"])


@every_mixer_and_size
@torch.no_grad()
def test_rows_at_different_clocks_know_nothing_of_each_other(
    mixer: str, window: int, keep: str, gate: str
) -> None:
    model, lengths = model_of(mixer, window, keep, gate), (1, 16, 3)
    states = [model(torch.randint(V, (1, n)))[1] for n in lengths]
    together, apart = select_rows(concat_rows(states), [2, 0, 1]), [states[i] for i in (2, 0, 1)]
    for _ in range(12):
        tokens_B1 = torch.randint(V, (3, 1))
        logits, together = model(tokens_B1, together)
        for row in range(3):
            alone, apart[row] = model(tokens_B1[row : row + 1], apart[row])
            torch.testing.assert_close(logits[row : row + 1], alone, **SAME)


@every_mixer
@every_keep
@every_gate
def test_the_loss_has_the_gradients_of_the_logits(mixer: str, keep: str, gate: str) -> None:
    model, tokens_BT, targets_BT = model_of(mixer, 9, keep, gate), some_tokens(), some_tokens()
    weights_BT, starts_BT = torch.rand(2, T).double(), starts_at(*STARTS)
    weights_BT[:, ::3] = 0
    names, parameters = zip(*model.named_parameters(), strict=True)
    logits_BTV, _ = model(tokens_BT, starts_BT=starts_BT)
    nats_BT = F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
    expected = (nats_BT * weights_BT).sum() / weights_BT.sum()
    arguments = {"targets_BT": targets_BT, "weights_BT": weights_BT}
    loss, _ = model(tokens_BT, starts_BT=starts_BT, **arguments)
    torch.testing.assert_close(loss, expected, **SAME)
    pairs = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    for name, ours, theirs in zip(names, *pairs, strict=True):
        assert ours.count_nonzero() or "summary" in name, name  # reset before they are read
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=name)


def test_a_model_learns_to_say_again_what_it_has_read() -> None:
    """Random ids, then the same again: the head cannot know them, the copy tier can."""
    config = ModelConfig(d_model=32, n_layers=1, d_mlp=32, copy=CopyConfig(64, 16))
    model = Model(config, vocab_size=100)  # many, so that one token tells which one follows
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        half_BT = torch.randint(100, (16, 20))
        tokens_BT = torch.cat([half_BT, half_BT], 1)
        loss, _ = model(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    log_p, _ = model(tokens_BT[:, :-1])
    again = F.cross_entropy(log_p[:, 22:].flatten(0, 1), tokens_BT[:, 23:].flatten())
    assert again.item() < 1  # ln 100 is 4.6


@torch.no_grad()
def test_logits_are_finite_where_nothing_gives_a_token_any_probability() -> None:
    model: Any = model_of().float()
    model.output.weight *= 1000
    logits_BTV, _ = model(some_tokens())
    assert logits_BTV.isfinite().all()
    loss, _ = model(some_tokens(), targets_BT=some_tokens())
    assert loss.isfinite()


def test_a_head_with_next_to_no_share_has_small_gradients() -> None:
    """Where the tier is sure of another token than the target, the loss is the head's at last."""
    model: Any = model_of(window=64).float()
    tokens_BT, targets_BT = torch.randint(6, (2, T)), torch.randint(6, V, (2, T))
    for sentinel in (-10.0, -20.0, -40.0):
        model.copy_tier.gate.weight.data.zero_()
        model.copy_tier.gate.bias.data.fill_(sentinel)
        gradients = []
        for each in (model, copy.deepcopy(model).double()):
            loss, _ = each(tokens_BT, targets_BT=targets_BT)
            gradients.append([loss, *torch.autograd.grad(loss, list(each.parameters()))])
        for ours, exact in zip(*gradients, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-2, atol=1e-3)


@every_keep
@torch.no_grad()
def test_the_last_logits_are_those_of_the_last_token(keep: str) -> None:
    model, tokens_BT = model_of("three_tier", 9, keep), some_tokens()
    last_B1V, _ = model(tokens_BT, logits="last")
    torch.testing.assert_close(last_B1V, model(tokens_BT)[0][:, -1:], **SAME)


@every_mixer
@every_keep
@torch.no_grad()
def test_its_costs_are_those_of_a_real_pass(
    mixer: str, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "load", lambda **_: None)  # torch cannot count its work
    with_tier, without = model_of(mixer, 9, keep).float(), model_of(mixer, 0).float()
    counted = [
        counted_flops(partial(model, torch.zeros(1, 1, dtype=torch.int64)))
        for model in (with_tier, without)
    ]
    claimed = [flops_per_token(model, 1) for model in (with_tier, without)]
    assert claimed[0] - claimed[1] == counted[0] - counted[1]
    assert parameters_by_part(with_tier)["copy"] == 3 * D * WIDTH + D + 1
    assert "copy" not in parameters_by_part(without)
    for seq_len in (1, 3, T):
        _, state = with_tier(torch.zeros(3, seq_len, dtype=torch.int64))
        assert state_bytes(with_tier, batch_size=3, seq_len=seq_len) == bytes_of(state)
    of_tier = [  # the mixer's own state may grow
        state_bytes(with_tier, batch_size=3, seq_len=n)
        - state_bytes(without, batch_size=3, seq_len=n)
        for n in (T, 10**6)
    ]
    assert of_tier[0] == of_tier[1]


@every_keep
@torch.no_grad()
def test_it_can_be_quantised(keep: str) -> None:
    model, tokens_BT = model_of(window=64, keep=keep).float(), some_tokens()
    expected, _ = model(tokens_BT)
    quantize_linears(model, "int8")
    assert "copy_tier.key.scales" in model.state_dict()
    with inference_mode(model):
        logits, _ = model(tokens_BT)
    assert 0 < (logits - expected).abs().max() < 0.5


@every_keep
def test_bf16_autocast_changes_the_loss_by_rounding_alone(keep: str) -> None:
    model, tokens_BT = model_of(window=64, keep=keep).float(), some_tokens()
    expected, _ = model(tokens_BT, targets_BT=tokens_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model(tokens_BT, targets_BT=tokens_BT)
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


@torch.no_grad()
def test_a_surprising_token_stays_however_long_the_text() -> None:
    """One id that the head never expects, then a thousand tokens; recent ones are always there."""
    model: Any = model_of(window=16, keep="surprising").float()
    model.output.weight.zero_()  # every id is equally probable, but for the bias below
    model.copy_tier.gate.bias.fill_(30.0)
    model.output.bias = torch.nn.Parameter(torch.zeros(V))
    model.output.bias[7] = -20.0
    tokens_BT = torch.randint(7, (1, 1000))
    tokens_BT[0, 3] = 7
    state = None
    for piece in tokens_BT.split(100, 1):
        _, state = model(piece, state)
    held = state["copy"]["tokens"] - 1
    assert held.shape == (1, 15)
    assert 7 in held
    assert torch.equal(held[:, -4:], tokens_BT[:, -4:].int())


def test_a_window_too_small_for_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="window of at least 8, found 0"):
        CopyConfig(0, WIDTH, "surprising")
