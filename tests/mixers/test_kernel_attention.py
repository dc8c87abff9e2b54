"""The 29 kinds of attention of 2Mamba's code: equations, identities, mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.mixer_cases import SAME, run
from torch import Tensor

from ys_llm.config.schema import ModelConfig
from ys_llm.errors import UserError
from ys_llm.mixers import kernel_attention
from ys_llm.mixers.kernel_attention import AS_CODED, MISTAKES, PRESETS, Mixer, Options
from ys_llm.model.language_model import Model
from ys_llm.ops.kernel_sums import Kernel, exp_series, sums_in_view

N_HEADS, D_MODEL = 2, 8


def mixer_of(preset: str, backend: str = "auto", **settings: Any) -> Mixer:
    """The same weights under the same names, whatever the preset."""
    mixer = Mixer(D_MODEL, Options(preset, n_heads=N_HEADS, **settings), backend=backend).double()
    for name, parameter in mixer.named_parameters():
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        with torch.no_grad():
            drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.copy_(1 + 0.1 * drawn if name == "norm_gain" else 0.4 * drawn)
    return mixer


def tokens(n_tokens: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, n_tokens, D_MODEL, dtype=torch.float64, generator=generator)


def output_of(preset: str, **settings: Any) -> Tensor:
    return run(mixer_of(preset, **settings), tokens())[0]


def turned(x_BHTP: Tensor) -> Tensor:
    """Rotary positions by complex numbers."""
    n_tokens, width = x_BHTP.shape[2:]
    pair = torch.arange(width // 2, dtype=torch.float64) * 2 / width
    angle = torch.arange(n_tokens, dtype=torch.float64)[:, None] * 10_000.0**-pair
    numbers = torch.complex(*x_BHTP.chunk(2, 3)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([numbers.real, numbers.imag], 3)


def scores_of(options: Options, q: Tensor, k: Tensor) -> Tensor:
    if options.kernel == "relu":
        q, k = q.relu(), k.relu()
    elif options.kernel == "elu":
        q, k = F.elu(q) + 1, F.elu(k) + 1
    elif options.kernel == "cosine":
        axis = 3 if options.cosine_axis == "width" else 1
        q, k = q / q.norm(dim=axis, keepdim=True), k / k.norm(dim=axis, keepdim=True)
    scores = q @ k.mT / (q.shape[3] ** 0.5 if options.scaled else 1)
    if options.clamp:
        scores = scores.minimum(torch.tensor(options.clamp, dtype=scores.dtype))
    return scores.exp() if options.kernel in ("exp", "taylor80") else scores


def denominator_of(options: Options, total: Tensor, count: Tensor) -> Tensor:
    found = {
        "none": torch.ones_like(total),
        "count": count.expand_as(total),
        "sum": total,
        "sum_at_least_1": total.clamp(min=1),
        "sum_at_least_1_detached": total.clamp(min=1).detach(),
        "sum_plus_eps": total + 1e-8,
        "sum_plus_eps_detached": total.detach() + 1e-4,
    }
    return found[options.denominator]


def normed(mixer: Mixer, u: Tensor) -> Tensor:
    norm = mixer.options.norm
    if norm == "ln":
        centred = u - u.mean(3, keepdim=True)
        root = (centred.square().mean(3, keepdim=True) + 1e-5).sqrt()
        return centred / root * mixer.norm_gain + mixer.norm_bias
    if norm == "rms":
        return u / (u.square().mean(3, keepdim=True) + 1e-6).sqrt() * mixer.norm_gain
    return u / u.norm(dim=3, keepdim=True).clamp(min=1e-12) if norm == "l2" else u


def equation(mixer: Mixer, x_BTD: Tensor) -> Tensor:
    """The common form of all 29, over all pairs of tokens."""

    def heads(layer: Any) -> Tensor:
        projected: Tensor = layer(x_BTD).unflatten(2, (N_HEADS, -1))
        return projected.transpose(1, 2)

    options, n_tokens = mixer.options, x_BTD.shape[1]
    q, k, v = turned(heads(mixer.q_proj)), turned(heads(mixer.k_proj)), heads(mixer.v_proj)
    if options.in_gate:
        v = v * heads(mixer.in_gate_proj).sigmoid()
    count = torch.arange(1, n_tokens + 1, dtype=torch.float64)[:, None]
    if options.kernel == "cosine":
        v = v / count ** mixer.exponent.sigmoid()[:, None, None]
    weights = scores_of(options, q, k).tril()
    u = weights @ v / denominator_of(options, weights.sum(3, keepdim=True), count)
    gate = heads(mixer.out_gate_proj).sigmoid() if options.out_gate != "none" else torch.ones(1)
    u = normed(mixer, u * gate)
    if options.out_gate == "both":
        u = u * gate
    return u.transpose(1, 2).flatten(2) @ mixer.out_proj.weight.t()


CASES = [(name, "meant") for name in PRESETS] + [(name, "paper") for name in MISTAKES]


@pytest.mark.parametrize(("preset", "fidelity"), CASES)
def test_a_preset_is_its_equation_parallel_chunked_and_recurrent(
    preset: str, fidelity: str
) -> None:
    expected = equation(mixer_of(preset, fidelity=fidelity), tokens())
    for backend in Mixer.backends:
        output, _ = run(mixer_of(preset, backend, fidelity=fidelity), tokens())
        torch.testing.assert_close(output, expected, **SAME)


@pytest.mark.parametrize("preset", ["softmax_detach_denom_gate", "linear_elu", "gated_softmax"])
def test_gradients_are_those_of_the_equation(preset: str) -> None:
    mixer = mixer_of(preset)
    gradients = [
        torch.autograd.grad(y.square().sum(), [*mixer.parameters()])
        for y in (run(mixer, tokens())[0], equation(mixer, tokens()))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"kernel": "elu", "denominator": "count"}])
def test_counts_go_on_from_pass_to_pass_and_begin_again_at_documents(
    settings: dict[str, Any],
) -> None:
    """The kernels of constant state that divide by the number of keys."""
    mixer, x_BTD = mixer_of("linear_cosine", rope_theta=0.0, **settings), tokens()
    starts_BT = torch.zeros(2, 7, dtype=torch.bool)
    starts_BT[0, 3] = True
    expected, _ = run(mixer, x_BTD, None, starts_BT)
    torch.testing.assert_close(expected[:1, 3:], run(mixer, x_BTD[:1, 3:])[0], **SAME)
    for t in range(1, 7):
        first, state = run(mixer, x_BTD[:, :t], None, starts_BT[:, :t])
        second, _ = run(mixer, x_BTD[:, t:], state, starts_BT[:, t:], t)
        torch.testing.assert_close(torch.cat([first, second], 1), expected, **SAME)


def test_there_are_29_names_and_each_comes_back_from_its_settings() -> None:
    assert len(PRESETS) == 29
    for name, settings in PRESETS.items():
        options = Options(name)
        again = Options(**{"preset": "softmax", **settings})
        assert all(getattr(options, field) == getattr(again, field) for field in settings)
        assert name in [other for other, values in PRESETS.items() if values == settings]


@pytest.mark.parametrize(
    "names",
    [
        ("softmax_divS_gate", "softmax_divS_gatev2", "gated_softmax_no_in_gate_no_norm"),
        ("softmax_divs", "gated_softmax_no_gate_no_norm"),
        ("softmax_divS_norm", "gated_softmax_no_gate_rmsnorm"),
        (
            "gated_softmax_out_gate_L2norm_nodivS_noclamp",
            "gated_softmax_no_gate_L2norm_nodivS_noclamp",
        ),
        ("softmax_clamp_denom", "softmax_detach_denom"),
    ],
    ids=lambda names: names[0],
)
@torch.no_grad()
def test_two_names_of_one_function(names: tuple[str, ...]) -> None:
    for name in names[1:]:
        torch.testing.assert_close(output_of(name), output_of(names[0]), **SAME)


@pytest.mark.parametrize(
    ("gated", "plain"),
    [
        ("gated_softmax", "gated_softmax_no_out_gate"),
        ("gated_softmax_no_in_gate", "gated_softmax_no_gate"),
        ("gated_softmax_no_gate_rmsnorm", "gated_softmax_no_gate_rmsnorm_nodivS"),
    ],
)
@torch.no_grad()
def test_a_norm_without_epsilon_takes_out_factors_of_a_row(
    gated: str, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_attention, "EPS", {"ln": 0.0, "rms": 0.0, "l2": 0.0})
    x_BTD = tokens()
    both = [run(mixer_of(name), x_BTD)[0] for name in (gated, plain)]
    torch.testing.assert_close(*both, **SAME)


def test_a_gate_before_the_l2_norm_has_no_gradient_and_one_after_it_has() -> None:
    name = "gated_softmax_out_gate_L2norm_nodivS_noclamp"
    for preset, learns in ((name, False), (name.replace("out", "post_out"), True)):
        mixer = mixer_of(preset)
        run(mixer, tokens())[0].square().sum().backward()
        grad = mixer.out_gate_proj.weight.grad
        assert grad is not None
        assert (grad.abs().max() > 1e-6) == learns


@torch.no_grad()
def test_a_clamp_and_a_least_sum_of_1_change_nothing_where_they_are_not_reached() -> None:
    def small_positive(preset: str) -> Tensor:
        mixer = mixer_of(preset, rope_theta=0.0)
        mixer.k_proj.weight.copy_(mixer.q_proj.weight)
        return run(mixer, tokens()[:, :1].expand(-1, 3, -1) / 4)[0]  # q . k >= 0: the sum is >= 1

    torch.testing.assert_close(small_positive("softmax_clamp_denom"), small_positive("softmax"))


def test_a_detached_denominator_changes_the_gradient_alone() -> None:
    outputs, gradients = [], []
    for preset in ("softmax_clamp_denom", "softmax_detach_denom"):
        mixer = mixer_of(preset)
        output, _ = run(mixer, tokens())
        outputs.append(output)
        gradients.append(torch.autograd.grad(output.square().sum(), [mixer.q_proj.weight])[0])
    torch.testing.assert_close(*outputs, **SAME)
    assert not torch.allclose(*gradients)


def test_a_score_above_the_clamp_weighs_exp_of_it_and_has_no_gradient() -> None:
    query = torch.full((1, 1, 1, 1), 7.0, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    document = torch.ones(1, 1, dtype=torch.int32)
    cases = ((Kernel("exp", 5.0), math.exp(5)), (Kernel("relu", 0.0), 7.0))
    for kernel, weight in cases:
        sums = sums_in_view((query, one, one), kernel, document, 0)
        (grad,) = torch.autograd.grad(sums.values_BTHP.sum(), [query])
        assert sums.values_BTHP.item() == pytest.approx(weight, rel=1e-15)
        assert (grad.item() == 0) == (kernel.clamp > 0)


def test_80_terms_are_exp_for_scores_up_to_20() -> None:
    scores = torch.linspace(-5, 20, 51, dtype=torch.float64)
    torch.testing.assert_close(exp_series(scores), scores.exp(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output_of("softmax_taylor_80terms"), output_of("softmax"), **SAME)


@torch.no_grad()
@pytest.mark.parametrize("preset", MISTAKES)
def test_fidelity_paper_keeps_a_mistake(preset: str) -> None:
    same = torch.allclose(output_of(preset), output_of(preset, fidelity="paper"))
    assert same == ("L2norm" in preset)  # there the mistake is a factor that the norm takes out
    assert AS_CODED[preset] != PRESETS[preset]


def test_keys_and_queries_of_0_read_0_with_finite_gradients() -> None:
    mixer = mixer_of("linear_relu", denominator="sum")
    with torch.no_grad():
        mixer.q_proj.weight.zero_()
    output, _ = run(mixer, tokens())
    assert output.count_nonzero() == 0
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@torch.no_grad()
@pytest.mark.parametrize("preset", ["gated_softmax", "linear_elu"])
def test_bf16_is_close_to_fp32(preset: str) -> None:
    mixer, x_BTD = mixer_of(preset).float(), tokens().float()
    expected, _ = run(mixer, x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = run(mixer, x_BTD)
    assert (output.float() - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "gated_softmaks"}, "Did you mean gated_softmax"),
        ({"preset": "softmax", "denominator": "count"}, "it overflows"),
        ({"preset": "linear_cosine", "clamp": 5.0}, "neither a clamp"),
        ({"preset": "linear_elu", "window": 4}, "constant state"),
        ({"n_heads": 8}, "even width"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], words: str) -> None:
    given = {"kernel_attention": options}
    config = ModelConfig(d_model=8, layers=("kernel_attention",), options=given)
    with pytest.raises(UserError, match=words):
        Model(config, vocab_size=10)
