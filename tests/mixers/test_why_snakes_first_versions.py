"""The mixers of Why Snakes v0.1 and v0.2 against their equations, and the source's mistakes."""

from __future__ import annotations

import math

import pytest
import torch
from support.mixer_cases import SAME, run
from torch import Tensor

from ys_llm.config.schema import ModelConfig
from ys_llm.errors import UserError
from ys_llm.mixers import ys_v0_1, ys_v0_2
from ys_llm.model.language_model import Model

D_MODEL, T = 6, 17


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, T, D_MODEL, dtype=torch.float64, generator=generator)


def drawn(mixer: torch.nn.Module) -> None:
    """Weights away from those of a new mixer, which hide terms."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in mixer.parameters():
            p.copy_(0.4 * torch.randn(p.shape, dtype=p.dtype, generator=generator))


def filter_of(fidelity: str, backend: str = "auto") -> ys_v0_2.Mixer:
    settings = {"fidelity": fidelity, "n_heads": 3, "d_state": 5, "block": 4}
    mixer = ys_v0_2.Mixer(D_MODEL, ys_v0_2.Options(**settings), backend=backend).double()  # type: ignore[arg-type]
    drawn(mixer)
    return mixer


def test_the_quadratic_state_is_its_equation() -> None:
    mixer = ys_v0_1.Mixer(D_MODEL, ys_v0_1.Options(d_state=4)).double()
    drawn(mixer)
    s, outputs = torch.zeros(2, 4, dtype=torch.float64), []
    for x in tokens().unbind(1):
        s = mixer.norm(torch.einsum("bi,bj,ijk->bk", s, s, mixer.quadratic) + mixer.in_proj(x))
        outputs.append(mixer.out_norm(mixer.out_proj(s) + mixer.skip_proj(x)))
    torch.testing.assert_close(run(mixer, tokens())[0], torch.stack(outputs, 1), **SAME)


def test_a_new_quadratic_state_without_noise_forgets_all_until_its_weights_move() -> None:
    options, x_BTD = ys_v0_1.Options(d_state=4, init_noise=0.0), tokens()
    mixer = ys_v0_1.Mixer(D_MODEL, options).double()
    torch.testing.assert_close(run(mixer, x_BTD)[0][:, 5:], run(mixer, x_BTD[:, 5:])[0], **SAME)


@pytest.mark.parametrize(("interval", "first"), [(4, 12), (0, 0)])
def test_no_gradient_of_the_state_passes_a_multiple_of_the_interval(
    interval: int, first: int
) -> None:
    mixer = ys_v0_1.Mixer(D_MODEL, ys_v0_1.Options(d_state=4, detach_interval=interval)).double()
    drawn(mixer)
    x_BTD = tokens()[:, :15].requires_grad_()
    run(mixer, x_BTD)[0][:, -1].square().sum().backward()
    assert x_BTD.grad is not None
    reached_T = x_BTD.grad.abs().amax((0, 2)) > 0
    assert reached_T.tolist() == [t >= first for t in range(15)]


@pytest.mark.parametrize("fidelity", ["fixed", "paper"])
def test_every_form_of_the_filter_is_its_sum_over_what_it_sees(fidelity: str) -> None:
    mixer, x_BTD = filter_of(fidelity), tokens()
    t, s = torch.arange(T)[:, None], torch.arange(T)
    if fidelity == "fixed":
        seen, rate_H = s <= t, -mixer.rate.abs()
    else:
        seen, rate_H = (s < t) & ((t // 4 == s // 4) | (s // 4 <= t // 4 - 2)), mixer.rate
        assert mixer.rate.max() > 0
    weights_HTT = (rate_H[:, None, None] * (t - s)).exp() * seen
    read = torch.einsum("hts,bshp->bthp", weights_HTT, x_BTD.unflatten(2, (3, -1)))
    scaled = (read * (mixer.write * mixer.read).sum(1)[:, None]).flatten(2)
    expected = mixer.norm(mixer.out_proj(scaled))
    wanted = torch.autograd.grad(expected.square().sum(), [*mixer.parameters()])
    for backend in mixer.backends:
        ours = filter_of(fidelity, backend)
        output, _ = run(ours, x_BTD)
        gradients = torch.autograd.grad(output.square().sum(), [*ours.parameters()])
        torch.testing.assert_close(output, expected, **SAME)
        torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_the_masks_of_the_source_go_on_from_pass_to_pass_and_begin_again_at_documents() -> None:
    mixer, x_BTD = filter_of("paper"), tokens()
    starts_BT = torch.zeros(2, T, dtype=torch.bool)
    starts_BT[0, 6] = True
    expected, _ = run(mixer, x_BTD, None, starts_BT)
    torch.testing.assert_close(expected[:1, 6:], run(mixer, x_BTD[:1, 6:], position=6)[0], **SAME)
    for t in range(1, T):
        first, state = run(mixer, x_BTD[:, :t], None, starts_BT[:, :t])
        second, _ = run(mixer, x_BTD[:, t:], state, starts_BT[:, t:], t)
        torch.testing.assert_close(torch.cat([first, second], 1), expected, **SAME)
        assert mixer.state_bytes(2, t) == sum(x.numel() * 8 for x in state.values())


@torch.no_grad()
@pytest.mark.parametrize(("fidelity", "grows"), [("paper", True), ("fixed", False)])
def test_a_positive_rate_grows_without_bound_in_the_source_alone(
    fidelity: str, grows: bool
) -> None:
    mixer = filter_of(fidelity)
    mixer.rate.fill_(0.4)
    _, state = run(mixer, torch.ones(1, 200, D_MODEL, dtype=torch.float64))
    assert (max(x.max() for x in state.values()) > math.exp(40)) == grows


def test_heads_that_do_not_fit_are_refused() -> None:
    given = {"ys_v0_2": {"n_heads": 4}}
    config = ModelConfig(d_model=6, layers=("ys_v0_2",), options=given)
    with pytest.raises(UserError, match="does not divide"):
        Model(config, vocab_size=10)
