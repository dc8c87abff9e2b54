"""The contract of a mixer, held by every file in `ys_llm/mixers/` without its being named here.

Each is tested with `Options()` and with the settings in its `CONTRACT_OPTIONS`, where it has any.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.flops import counted_flops
from support.mixer_cases import D_MODEL, NAMES, SAME, Case, T, cases, every_mixer, run
from torch import Tensor, nn

from ys_llm.config.schema import ModelConfig
from ys_llm.csrc import loader
from ys_llm.errors import UserError
from ys_llm.mixers.protocol import Mixer
from ys_llm.model import costs
from ys_llm.model.language_model import Model
from ys_llm.model.state import concat_rows, select_rows, state_bytes, tensors_of

DOCUMENT_STARTS = (5, 16, 40, 41, 63)  # on and off the summaries' periods; one document is 1 token


def streamed(mixer: nn.Module, pieces: list[Tensor], starts: list[Tensor] | None = None) -> Any:
    """Outputs of the pieces one after the other with the state carried, and the last state."""
    state, outputs, position = None, [], 0
    for number, piece in enumerate(pieces):
        output, state = run(mixer, piece, state, starts[number] if starts else None, position)
        outputs.append(output)
        position += piece.shape[1]
    return torch.cat(outputs, dim=1), state


def starts_at(*rows: tuple[int, ...]) -> Tensor:
    starts_BT = torch.zeros(len(rows), T, dtype=torch.bool)
    for row, positions in enumerate(rows):
        starts_BT[row, list(positions)] = True
    return starts_BT


def assert_same_state(state: Any, expected: Any) -> None:
    for ours, theirs in zip(tensors_of(state), tensors_of(expected), strict=True):
        torch.testing.assert_close(ours, theirs, **SAME)


def test_there_are_mixers_to_test() -> None:
    assert len(NAMES) >= 2


@every_mixer
def test_it_has_all_that_the_protocol_names(case: Case) -> None:
    mixer = case.mixer()
    methods = {name for name in vars(Mixer) if not name.startswith("_")}
    for name in methods | set(Mixer.__annotations__):
        assert hasattr(mixer, name), f"{case.name} lacks {name}"
    backend, why = mixer.select_backend(batch_size=2, precision="fp32", timed=False)
    assert mixer.backend == backend != "auto"
    assert why
    assert mixer.select_backend(batch_size=2, precision="fp32", previous=backend)[0] == backend


@every_mixer
@torch.no_grad()
def test_a_token_changes_no_output_before_it(case: Case) -> None:
    """Row t of the batch has another token t; a test below says that rows are independent."""
    mixer, x_BTD = case.mixer().double(), torch.randn(1, T, D_MODEL, dtype=torch.float64)
    (expected_TD,), _ = run(mixer, x_BTD)
    changed_BTD = x_BTD.repeat(T, 1, 1)
    changed_BTD[range(T), range(T)] += torch.randn(T, D_MODEL, dtype=torch.float64)
    for t, output_TD in enumerate(run(mixer, changed_BTD)[0]):
        torch.testing.assert_close(output_TD[:t], expected_TD[:t], **SAME)
        assert not torch.allclose(output_TD[t], expected_TD[t]), f"output {t} ignores token {t}"


# Each remainder of the local period, the edges of every period, document starts, and both ends.
CUTS = (*range(1, 18), *range(31, 35), *range(39, 43), *range(47, 50), *range(61, T))
CUTS_OF_DOCUMENTS = (1, 4, 5, 6, 15, 16, 17, 33, 39, 40, 41, 42, 48, 62, 63, 64)


@every_mixer
@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@torch.no_grad()
def test_two_passes_with_the_carried_state_equal_one(case: Case, packed: bool) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(2, T, D_MODEL, dtype=torch.float64)
    starts_BT = starts_at(DOCUMENT_STARTS, (0, 16, 33)) if packed else None
    expected, last = run(mixer, x_BTD, None, starts_BT)
    for t in CUTS_OF_DOCUMENTS if packed else CUTS:
        starts = None if starts_BT is None else [starts_BT[:, :t], starts_BT[:, t:]]
        output, state = streamed(mixer, [x_BTD[:, :t], x_BTD[:, t:]], starts)
        torch.testing.assert_close(output, expected, **SAME)
        assert_same_state(state, last)


@every_mixer
@torch.no_grad()
def test_one_token_at_a_time_equals_one_pass(case: Case) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(2, T, D_MODEL, dtype=torch.float64)
    expected, last = run(mixer, x_BTD)
    output, state = streamed(mixer, list(x_BTD.split(1, dim=1)))
    torch.testing.assert_close(output, expected, **SAME)
    assert_same_state(state, last)


@every_mixer
@torch.no_grad()
def test_starting_from_init_state_equals_starting_from_none(case: Case) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(2, T, D_MODEL, dtype=torch.float64)
    torch.testing.assert_close(
        run(mixer, x_BTD, mixer.init_state(2))[0], run(mixer, x_BTD)[0], **SAME
    )


@every_mixer
@torch.no_grad()
def test_a_pass_leaves_the_state_it_was_given_as_it_was(case: Case) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(2, T, D_MODEL, dtype=torch.float64)
    _, state = run(mixer, x_BTD)
    first, _ = run(mixer, x_BTD, state)
    second, _ = run(mixer, x_BTD, state)
    assert torch.equal(first, second)


@every_mixer
@torch.no_grad()
def test_rows_of_a_batch_know_nothing_of_each_other(case: Case) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(3, T, D_MODEL, dtype=torch.float64)
    together, _ = run(mixer, x_BTD)
    alone = [run(mixer, row_TD[None])[0] for row_TD in x_BTD]
    torch.testing.assert_close(together, torch.cat(alone), **SAME)


PROMPT_LENGTHS = (1, 16, 21, 63, 64)  # on and off the summaries' periods


@every_mixer
@pytest.mark.parametrize("piece", [1, 3], ids=["by-one", "by-three"])
@torch.no_grad()
def test_rows_at_different_clocks_know_nothing_of_each_other(case: Case, piece: int) -> None:
    """As a batch of generated texts is: prompts of any length, then all are stepped together."""
    mixer = case.mixer().double()
    prompts = [torch.randn(1, n, D_MODEL, dtype=torch.float64) for n in PROMPT_LENGTHS]
    states = [run(mixer, x_BTD)[1] for x_BTD in prompts]
    together, position_B = concat_rows(states), torch.tensor(PROMPT_LENGTHS)
    for _ in range(18 // piece):
        x_BTD = torch.randn(len(prompts), piece, D_MODEL, dtype=torch.float64)
        output, together = mixer(x_BTD, together, None, position_B)
        for row, position in enumerate(position_B.tolist()):
            alone, states[row] = run(mixer, x_BTD[row : row + 1], states[row], None, position)
            torch.testing.assert_close(output[row : row + 1], alone, **SAME)
        position_B = position_B + piece


@every_mixer
@torch.no_grad()
def test_rows_that_leave_a_batch_and_join_it_stay_what_they_are(case: Case) -> None:
    mixer = case.mixer().double()
    lengths = (40, 7)
    prompts = [torch.randn(1, n, D_MODEL, dtype=torch.float64) for n in lengths]
    short = run(mixer, prompts[1])[1]
    together = concat_rows([run(mixer, prompts[0])[1], short, mixer.init_state(1)])
    together = select_rows(together, [2, 1])  # the longest leaves, and its padding stays
    position_B = torch.tensor([0, lengths[1]])
    x_BTD = torch.randn(2, 20, D_MODEL, dtype=torch.float64)
    output, _ = mixer(x_BTD, together, None, position_B)
    torch.testing.assert_close(output[:1], run(mixer, x_BTD[:1])[0], **SAME)
    expected, _ = run(mixer, x_BTD[1:], short, None, lengths[1])
    torch.testing.assert_close(output[1:], expected, **SAME)


@every_mixer
@torch.no_grad()
def test_a_packed_row_equals_its_documents_run_apart(case: Case) -> None:
    mixer, x_BTD = case.mixer().double(), torch.randn(1, T, D_MODEL, dtype=torch.float64)
    packed, _ = run(mixer, x_BTD, None, starts_at(DOCUMENT_STARTS))
    bounds = [0, *DOCUMENT_STARTS, T]
    for begin, end in pairwise(bounds):
        alone, _ = run(mixer, x_BTD[:, begin:end], position=begin)  # the clock goes on
        torch.testing.assert_close(packed[:, begin:end], alone, **SAME)


@every_mixer
def test_no_gradient_crosses_a_document_start(case: Case) -> None:
    mixer = case.mixer().double()
    x_BTD = torch.randn(1, T, D_MODEL, dtype=torch.float64, requires_grad=True)
    output, _ = run(mixer, x_BTD, None, starts_at((40,)))
    output[:, 40:].square().sum().backward()
    assert x_BTD.grad is not None
    assert x_BTD.grad[:, :40].count_nonzero() == 0
    assert x_BTD.grad[:, 40:].abs().amax(-1).min() > 0


@every_mixer
def test_every_parameter_learns(case: Case) -> None:
    """Finite, non-zero gradients by the second step: a factor may start at 0, its mate may not."""
    mixer, x_BTD = case.mixer(), torch.randn(2, 130, D_MODEL)
    target_BTD, learned = torch.randn(2, 130, D_MODEL), set()
    optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (run(mixer, x_BTD)[0] - target_BTD).square().mean().backward()
        for name, parameter in mixer.named_parameters():
            assert parameter.grad is not None, f"{name} has no part in the output"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            if parameter.grad.count_nonzero():
                learned.add(name)
        optimizer.step()
    assert learned == {name for name, _ in mixer.named_parameters()}


@every_mixer
def test_a_backend_that_it_does_not_list_is_refused(case: Case) -> None:
    assert "reference" in case.mixer().backends
    with pytest.raises(UserError) as caught:
        case.mixer("warp_drive")
    assert all(name in str(caught.value) for name in case.mixer().backends)


@every_mixer
@pytest.mark.parametrize("seq_len", [1, T])
@torch.no_grad()
def test_state_bytes_are_those_of_a_streamed_state(case: Case, seq_len: int) -> None:
    mixer, x_BTD = case.mixer(), torch.randn(3, seq_len, D_MODEL)
    _, state = streamed(mixer, list(x_BTD.split(1, dim=1)))
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state))
    assert mixer.state_bytes(3, seq_len) == held


@every_mixer
@torch.no_grad()
def test_flops_per_token_are_those_that_are_executed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted on both paths: either may do needless work (masked blocks, a product done twice)."""
    monkeypatch.setattr(loader, "load", lambda **_: None)  # torch cannot count its work
    x_BTD = torch.randn(1, 128, D_MODEL)
    counted = (
        min(counted_flops(partial(run, case.mixer(name), x_BTD)) for name in ("reference", "auto"))
        / 128
    )
    assert case.mixer().flops_per_token(128) == pytest.approx(counted, rel=0.03)


@every_mixer
def test_the_fast_path_equals_the_reference_with_its_gradients(case: Case) -> None:
    fast, reference = case.mixer().double(), case.mixer("reference").double()
    reference.load_state_dict(fast.state_dict())
    x_BTD = torch.randn(2, T, D_MODEL, dtype=torch.float64)
    for starts_BT in (None, starts_at(DOCUMENT_STARTS, (0,))):
        passes = []
        for mixer in (fast, reference):
            output, state = run(mixer, x_BTD, None, starts_BT)
            parameters = list(mixer.parameters())
            gradients = torch.autograd.grad(
                output.square().sum(), parameters, allow_unused=True, materialize_grads=True
            )
            passes.append((output, gradients, state))
        (output, gradients, state), (expected, expected_gradients, expected_state) = passes
        torch.testing.assert_close(output, expected, **SAME)
        torch.testing.assert_close(gradients, expected_gradients, **SAME)
        assert_same_state(state, expected_state)


def model_of(case: Case, *, vocab_size: int, **changes: int) -> Model:
    settings = {"d_model": D_MODEL, "n_layers": 1, "d_mlp": 0, **changes}
    options = {case.name: asdict(case.options)}
    config = ModelConfig(layers=(case.name,), options=options, convolution=case.taps, **settings)
    return Model(config, vocab_size=vocab_size)


@every_mixer
@torch.no_grad()
def test_the_costs_of_a_model_are_its_real_size(case: Case) -> None:
    model, tokens_BT = model_of(case, vocab_size=20, n_layers=2, d_mlp=48), torch.ones(3, T).long()
    mixer = sum(parameter.numel() for parameter in case.mixer().parameters())
    parts = costs.parameters_by_part(model)
    assert parts["mixers"] == 2 * mixer
    assert sum(parts.values()) == costs.parameter_count(model)
    assert costs.parameter_count(model) == 2 * (mixer + 3 * 32 * 48 + 2 * 32) + 32 + 2 * 20 * 32
    _, state = model(tokens_BT)
    assert costs.state_bytes(model, batch_size=3, seq_len=T) == state_bytes(state)


@every_mixer
@torch.no_grad()
def test_the_flops_of_a_model_are_those_of_trunk_and_mixers(case: Case) -> None:
    model, tokens_BT = model_of(case, vocab_size=20, n_layers=2, d_mlp=48), torch.ones(1, T).long()
    trunk = (
        counted_flops(partial(model, tokens_BT))
        - 2 * counted_flops(partial(run, case.mixer(), torch.randn(1, T, D_MODEL)))
    ) / T
    counted = trunk + 2 * case.mixer().flops_per_token(T)
    assert costs.flops_per_token(model, T) == counted


# After a 0 comes 1, 2, 3 or 4 according to the last non-zero token: two steps of memory are needed.
PATTERN = torch.tensor([0, 1, 0, 2, 0, 3, 0, 4])


def entropy_of_next(tokens: list[int], previous: list[int]) -> float:
    """Entropy in nats of the next token of the pattern given `previous` alone."""
    pairs = list(zip(previous, tokens, strict=True))
    weights = [pairs.count(pair) / previous.count(pair[0]) for pair in pairs]
    return -sum(math.log(weight) for weight in weights) / len(pairs)


# A convolution sees the two tokens by itself.
@pytest.mark.parametrize("case", [param for param in cases() if not param.values[0].taps])
def test_a_short_training_run_beats_unigram_and_bigram(case: Case) -> None:
    symbols = PATTERN.tolist()
    unigram = entropy_of_next(symbols, [0] * len(symbols))
    bigram = entropy_of_next(symbols, symbols[-1:] + symbols[:-1])
    assert bigram < unigram
    model = model_of(case, vocab_size=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    generator = torch.Generator().manual_seed(0)
    for _ in range(160):
        phase_B1 = torch.randint(len(PATTERN), (16, 1), generator=generator)
        tokens_BT = PATTERN[(phase_B1 + torch.arange(33)) % len(PATTERN)]
        loss, _ = model(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:])
        if loss.item() < bigram / 2:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
    pytest.fail(f"no loss was below {bigram / 2:.2f}; the last is {loss.item():.2f}")
