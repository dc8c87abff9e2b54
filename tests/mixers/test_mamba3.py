"""Mamba-3 against a complex recurrence: rotated keys are a transition that turns the state."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.mixer_cases import SAME, run
from torch import Tensor

from ys_llm.errors import UserError
from ys_llm.mixers.mamba3 import Mixer, Options

B, T, D = 2, 9, 8


def normed(key: Tensor, gain: Tensor, bias: Tensor, mixer: Mixer) -> Tensor:
    """B x n x R x N of one token."""
    options = mixer.options
    grouped = key.unflatten(1, (options.n_groups, options.rank, options.d_state))
    whole = F.rms_norm(grouped, (options.d_state,), gain, eps=1e-5)
    return whole.repeat_interleave(mixer.n_heads // options.n_groups, 1) + bias


def complex_pairs(key: Tensor, n_angles: int) -> tuple[Tensor, Tensor]:
    """The rotated numbers as complex ones, and the rest."""
    left, right, plain = key.tensor_split([n_angles, 2 * n_angles], -1)
    return torch.complex(left, right), plain


def complex_recurrence(mixer: Mixer, x_BTD: Tensor) -> Tensor:
    """h_t = exp(s (-r + i turn)) (h_{t-1} + (1 - l) s B_{t-1} x_{t-1}) + l s B_t x_t, literally.

    Of channels that do not turn the transition is real. y_t = Re(conj(C_t) h_t).
    """
    options, heads = mixer.options, mixer.n_heads
    turning: Tensor = torch.zeros(B, heads, mixer.n_angles, mixer.d_head, dtype=torch.complex128)
    n_plain = options.d_state - 2 * mixer.n_angles
    plain = torch.zeros(B, heads, n_plain, mixer.d_head, dtype=torch.float64)
    before, outputs = (torch.zeros_like(turning), torch.zeros_like(plain)), []
    rows = torch.ones(heads, 1, mixer.d_head, dtype=torch.float64)
    into, gated, out = (
        getattr(mixer, f"{name}_rows", rows).double() for name in ("value", "gate", "out")
    )
    for x_BD in x_BTD.unbind(1):
        gate, value, b, c, step, rate, mix, turn = mixer.in_proj(x_BD).split(mixer._widths, 1)
        s = F.softplus(step + mixer.step_bias)[..., None, None]
        r, mixed = F.softplus(rate)[..., None, None], mix.sigmoid()[..., None, None]
        angle = math.pi * turn.tanh()[:, None, :, None] * s
        written = value.unflatten(1, (heads, 1, -1)) * into
        keys = complex_pairs(normed(b, mixer.key_gain, mixer.key_bias, mixer), mixer.n_angles)
        queries = complex_pairs(
            normed(c, mixer.query_gain, mixer.query_bias, mixer), mixer.n_angles
        )
        now = tuple(torch.einsum("bhrn,bhrp->bhnp", k, written.to(k.dtype)) for k in keys)
        fade = torch.exp(-r * s)
        # A key that turns forward with its token is a state that turns backward relative to it.
        back = torch.exp(torch.complex(torch.zeros_like(angle), -angle))
        turning = fade * back * (turning + (1 - mixed) * s * before[0]) + mixed * s * now[0]
        plain = fade * (plain + (1 - mixed) * s * before[1]) + mixed * s * now[1]
        before = (now[0], now[1])
        read = torch.einsum("bhrn,bhnp->bhrp", queries[0].conj(), turning).real
        read = read + torch.einsum("bhrn,bhnp->bhrp", queries[1], plain)
        read = read + mixer.skip[:, None, None] * written
        gates = F.silu(gate.unflatten(1, (heads, 1, -1)) * gated)
        outputs.append((read * gates * out).sum(2).flatten(1) @ mixer.out_proj.weight.T)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(
    "options",
    [
        Options(expand=1, d_head=4, d_state=4),
        Options(expand=2, d_head=4, d_state=6, n_groups=2, rank=3, rope_fraction=1.0),
    ],
)
def test_every_form_is_the_complex_recurrence(options: Options) -> None:
    torch.manual_seed(0)
    first = Mixer(D, options).double()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        first.step_bias.add_(3)  # turns of up to half a circle a token
    x_BTD = torch.randn(B, T, D, dtype=torch.float64)
    expected = complex_recurrence(first, x_BTD)
    wanted = torch.autograd.grad(expected.square().sum(), [*first.parameters()])
    for backend in Mixer.backends:
        mixer = Mixer(D, options, backend=backend).double()
        mixer.load_state_dict(first.state_dict())
        output, _ = run(mixer, x_BTD)
        gradients = torch.autograd.grad(output.square().sum(), [*mixer.parameters()])
        torch.testing.assert_close(output, expected, **SAME)
        torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-8)


def test_it_has_as_many_parameters_as_the_block_of_its_source() -> None:
    """d_model 256, expand 2, P 64, N 128, G 1, half of a key's numbers rotated."""
    inner, heads, n_keys = 512, 8, 128
    weights = 256 * (2 * inner + 2 * n_keys + 3 * heads + 32) + inner * 256
    others = 2 * heads * n_keys + 2 * n_keys + 2 * heads
    siso, mimo = (Mixer(256, Options(rank=rank)) for rank in (1, 4))
    assert sum(p.numel() for p in siso.parameters()) == weights + others
    further = 256 * 6 * n_keys + 6 * heads * n_keys + 3 * heads * 4 * 64
    assert sum(p.numel() for p in mimo.parameters()) == weights + others + further


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"d_head": 3}, "d_head 3 does not divide 16"),
        ({"n_groups": 3, "d_head": 4}, "n_groups 3 does not divide 4"),
        ({"rope_fraction": 0.01}, "leaves no pair"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Mixer(D, Options(**changes))
