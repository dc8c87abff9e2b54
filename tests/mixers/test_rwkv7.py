"""RWKV-7 against the equations of its source, in which the state is a matrix of values by keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.mixer_cases import SAME, run
from torch import Tensor

from ys_llm.mixers.rwkv7 import Mixer, Options


def time_mix(mixer: Mixer, x_BTD: Tensor) -> Tensor:
    n_heads = mixer.options.n_heads
    before = F.pad(x_BTD, (0, 0, 1, 0))[:, :-1]
    r, w, k, v, a, g = (torch.lerp(x_BTD, before, mu.expand_as(x_BTD)) for mu in mixer.shift)
    r, k, v = mixer.r_proj(r), mixer.k_proj(k), mixer.v_proj(v)
    w = torch.exp(-torch.sigmoid(mixer.decay_out(torch.tanh(mixer.decay_in(w)))) / torch.e**0.5)
    a = torch.sigmoid(mixer.rate_out(mixer.rate_in(a)))
    g = mixer.gate_out(torch.sigmoid(mixer.gate_in(g)))
    removal = (k * mixer.removal_scale).unflatten(2, (n_heads, -1))
    removal = removal / (removal.square().sum(3, keepdim=True) + 1e-6).sqrt()
    k = torch.lerp(k, k * a, mixer.key_scale.expand_as(k))
    r, w, k, v, a = (x.unflatten(2, (n_heads, -1)) for x in (r, w, k, v, a))
    state, reads = torch.zeros(2, n_heads, r.shape[3], r.shape[3], dtype=x_BTD.dtype), []
    for t in range(x_BTD.shape[1]):
        outer = removal[:, t, :, :, None] * (a * removal)[:, t, :, None]
        written = v[:, t, :, :, None] * k[:, t, :, None]
        state = state @ (torch.diag_embed(w[:, t]) - outer) + written
        reads.append((state @ r[:, t, :, :, None]).squeeze(3))
    read = F.layer_norm(torch.stack(reads, 1), r.shape[3:], eps=64e-5).flatten(2)
    bonus = (r * k * mixer.bonus.unflatten(0, (n_heads, -1))).sum(3, keepdim=True) * v
    p = read * mixer.norm_gain + mixer.norm_bias + bonus.flatten(2)
    return (g * p) @ mixer.out_proj.weight.t()


def test_every_form_is_the_time_mix_of_the_source() -> None:
    x_BTD = torch.randn(2, 20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    first = Mixer(8, Options(n_heads=2, rank=3)).double()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    expected = time_mix(first, x_BTD)
    wanted = torch.autograd.grad(expected.square().sum(), [*first.parameters()])
    for backend in Mixer.backends:
        mixer = Mixer(8, first.options, backend=backend).double()
        mixer.load_state_dict(first.state_dict())
        output, _ = run(mixer, x_BTD)
        gradients = torch.autograd.grad(output.square().sum(), [*mixer.parameters()])
        torch.testing.assert_close(output, expected, **SAME)
        torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-8)
