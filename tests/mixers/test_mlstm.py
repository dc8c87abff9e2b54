"""The mLSTM against the recurrence of its source, which scales the memory to stay in range."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.mixer_cases import SAME, run
from torch import Tensor

from ys_llm.mixers.mlstm import Mixer, Options


def scaled_recurrence(mixer: Mixer, x_BTD: Tensor) -> Tensor:
    """m_t keeps the logarithm of the scale: M and n are held as exp(-m_t) times themselves."""
    options = mixer.options

    def heads(layer: torch.nn.Module) -> Tensor:
        projected: Tensor = layer(x_BTD).unflatten(2, (options.n_heads, -1))
        return projected

    q, k, v = heads(mixer.q_proj) / options.d_key**0.5, heads(mixer.k_proj), heads(mixer.v_proj)
    into, forget = (15 * torch.tanh(heads(p) / 15) for p in (mixer.input_proj, mixer.forget_proj))
    memory = torch.zeros(2, options.n_heads, options.d_key, options.d_value, dtype=x_BTD.dtype)
    keys, scale, outputs = memory[..., :1], memory[..., :1, 0], []
    for t in range(x_BTD.shape[1]):
        log_kept = torch.log(torch.sigmoid(forget[:, t])) + scale
        scale = torch.maximum(log_kept, into[:, t])
        kept, written = (torch.exp(x - scale)[..., None] for x in (log_kept, into[:, t]))
        memory = kept * memory + written * k[:, t, :, :, None] * v[:, t, :, None]
        keys = kept * keys + written * k[:, t, :, :, None]
        row = q[:, t, :, None]
        least = torch.exp(-scale)[..., None]
        outputs.append((row @ memory / (row @ keys).abs().maximum(least)).squeeze(2))
    normed = F.rms_norm(torch.stack(outputs, 1), (options.d_value,), eps=1e-6).flatten(2)
    gated = normed * mixer.norm_gain * torch.sigmoid(mixer.gate_proj(x_BTD))
    return gated @ mixer.out_proj.weight.t()


def test_every_form_is_the_recurrence_of_the_source_also_where_gates_are_large() -> None:
    x_BTD = torch.randn(2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for size in (1.0, 60.0):
        torch.manual_seed(0)
        first = Mixer(8, Options(n_heads=2, d_key=3, d_value=4)).double()
        with torch.no_grad():
            first.input_proj.weight *= size
        expected = scaled_recurrence(first, x_BTD)
        wanted = torch.autograd.grad(expected.square().sum(), [*first.parameters()])
        for backend in Mixer.backends:
            mixer = Mixer(8, first.options, backend=backend).double()
            mixer.load_state_dict(first.state_dict())
            output, _ = run(mixer, x_BTD)
            gradients = torch.autograd.grad(output.square().sum(), [*mixer.parameters()])
            torch.testing.assert_close(output, expected, **SAME)
            torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-8)
