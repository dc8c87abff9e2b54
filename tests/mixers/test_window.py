"""Attention over a window mixes exactly the tokens in it."""

from __future__ import annotations

import torch
from support.mixer_cases import run

from ys_llm.mixers.softmax_attention import Mixer, Options


def test_an_output_depends_on_the_tokens_in_its_window_and_on_no_other() -> None:
    window, length = 5, 14
    mixer = Mixer(16, Options(n_heads=2, n_kv_heads=1, window=window)).double()
    torch.nn.init.normal_(mixer.v_proj.weight)
    x_BTD = torch.randn(1, length, 16, dtype=torch.float64, requires_grad=True)
    output, _ = run(mixer, x_BTD)
    for t in range(length):
        (grad,) = torch.autograd.grad(output[0, t].sum(), x_BTD, retain_graph=True)
        seen = grad[0].abs().amax(-1).nonzero().flatten().tolist()
        assert seen == list(range(max(0, t - window + 1), t + 1))
