"""2Mamba, what it was made from, and Mamba-2: their equations, identities and sizes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from support import decayed
from support.mixer_cases import SAME, run
from support.training_runs import ROOT
from torch import Tensor

from ys_llm.config.schema import ModelConfig, TrainConfig
from ys_llm.errors import UserError
from ys_llm.mixers import decay_attention, mamba2
from ys_llm.mixers.decay_attention import PRESETS, Options
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.model.state import tensors_of
from ys_llm.ops import linear_attention
from ys_llm.training.schedule import scheduled_rate

CLOSE = {"rtol": 1e-8, "atol": 1e-8}  # gradients in float64


def mixer_of(options: Options, backend: str = "auto") -> decay_attention.Mixer:
    torch.manual_seed(0)
    return decay_attention.Mixer(8, options, backend=backend).double()


def tokens(n_tokens: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, n_tokens, 8, dtype=torch.float64, generator=generator)


def assert_all_forms_equal(module: Any, options: Any, equation: Any) -> None:
    """Outputs and gradients of each form; `equation` reads the weights of the mixer it is given."""
    torch.manual_seed(0)
    first = module.Mixer(8, options).double()
    expected = equation(first, tokens())
    wanted = torch.autograd.grad(expected.square().sum(), [*first.parameters()])
    for backend in first.backends:
        mixer = module.Mixer(8, options, backend=backend).double()
        mixer.load_state_dict(first.state_dict())
        output, _ = run(mixer, tokens())
        gradients = torch.autograd.grad(output.square().sum(), [*mixer.parameters()])
        torch.testing.assert_close(output, expected, **SAME)
        torch.testing.assert_close(gradients, wanted, **CLOSE)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_equation_parallel_chunked_and_recurrent(preset: str) -> None:
    assert_all_forms_equal(decay_attention, Options(preset, n_heads=2), decayed.decay_attention)


@pytest.mark.parametrize(
    "options",
    [
        Options("linear", decay="original", taps=3, value_step=True, decay_bias=True),
        Options("2mamba", norm="rms", decay="none", gate=True),
        Options("2mamba-e", value_step=True, skip=True, decay_bias=True),
        Options("2mamba-e", decay="none", taps=1),  # plain softmax attention
    ],
    ids=lambda options: f"{options.preset}-{options.decay}",
)
def test_what_the_source_does_not_combine_is_its_equation(options: Options) -> None:
    assert_all_forms_equal(decay_attention, options, decayed.decay_attention)


@pytest.mark.parametrize(
    "options",
    [
        mamba2.Options(d_head=8, d_state=4),
        mamba2.Options("as_written", d_head=4, d_state=3),
        mamba2.Options("as_committed", d_ssm=4, d_head=2, d_state=3),
        mamba2.Options("linear_mamba", d_head=2, d_state=3, n_groups=2),
    ],
    ids=lambda options: options.preset,
)
def test_mamba2_is_its_equation_parallel_chunked_and_recurrent(options: mamba2.Options) -> None:
    assert_all_forms_equal(mamba2, options, decayed.mamba2)


@torch.no_grad()
def test_channels_outside_d_ssm_are_not_mixed_over_time() -> None:
    mixer = mamba2.Mixer(8, mamba2.Options("as_committed", d_ssm=4, d_head=4, d_state=3)).double()
    mixer.out_proj.weight.copy_(torch.eye(8))
    assert mixer.n_heads == 1
    x_BTD = tokens()
    together, alone = run(mixer, x_BTD)[0], run(mixer, x_BTD[:, -1:])[0]
    torch.testing.assert_close(together[:, -1:, :4], alone[..., :4], **SAME)
    assert not torch.allclose(together[:, -1:, 4:], alone[..., 4:])


@pytest.mark.parametrize("preset", ["as_committed", "linear_mamba"])
def test_mamba2_projects_to_as_many_numbers_as_the_sources_medium_model(preset: str) -> None:
    with torch.device("meta"):
        mixer = mamba2.Mixer(1536, mamba2.Options(preset))
    assert mixer.in_proj.weight.shape[0] == {"as_committed": 3329, "linear_mamba": 3224}[preset]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 32, 40])
def test_chunks_of_any_size_equal_the_recurrence(
    size: int, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(linear_attention.CHUNK, power, size)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 40, 2, 3, dtype=torch.float64) for _ in range(3))
    writes = linear_attention.Writes(key, value, -torch.rand(2, 40, 2, dtype=torch.float64))
    n_rows = linear_attention.n_features(3, power)
    memory = torch.randn(2, 2, n_rows, 3, dtype=torch.float64)
    ours = linear_attention.chunked(query, writes, memory, None, power)
    theirs = linear_attention.reference(query, writes, memory, None, power)
    torch.testing.assert_close(ours, theirs, **SAME)


def test_products_of_pairs_have_the_square_as_their_product() -> None:
    q, k = torch.randn(2, 6, 5, dtype=torch.float64)  # five of each
    ours = (linear_attention.features(q, 2) * linear_attention.features(k, 2)).sum(0)
    torch.testing.assert_close(ours, (q * k).sum(0).square(), **SAME)
    assert linear_attention.features(q, 2).shape == (6 * 7 // 2, 5)
    leaf = q.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: linear_attention.features(x, 2), (leaf,))


@pytest.mark.parametrize(
    ("preset", "numbers"), [("2mamba", 135_392), ("linear", 4096 + 64), ("mamba-2s", 4096 + 192)]
)
def test_the_state_of_a_head_of_width_64_is_as_large_as_published(
    preset: str, numbers: int
) -> None:
    mixer = decay_attention.Mixer(64, Options(preset, n_heads=1))
    assert sum(tensor.numel() for tensor in tensors_of(mixer.init_state(1))) == numbers
    assert mixer.state_bytes(1, 500) == 4 * numbers


@torch.no_grad()
def test_the_first_token_of_2mamba_reads_itself_and_the_size_of_a_query_does_not_matter() -> None:
    mixer = mixer_of(Options("2mamba", n_heads=2))
    mixer.out_proj.weight.copy_(torch.eye(8))
    expected, _ = run(mixer, tokens())
    qkv = tokens() @ mixer.qkv_proj.weight.t()
    value = decayed.causal_convolution(qkv, mixer.conv_taps, mixer.conv_bias)[..., 16:]
    torch.testing.assert_close(expected[:, 0], value[:, 0], **SAME)
    mixer.conv_taps[:, :8] *= 3
    mixer.conv_bias[:8] *= 3
    torch.testing.assert_close(run(mixer, tokens())[0], expected, **SAME)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["2mamba", "2mamba-e"])
def test_the_weights_of_2mamba_add_up_to_1(preset: str) -> None:
    mixer = mixer_of(Options(preset, n_heads=2))
    mixer.out_proj.weight.copy_(torch.eye(8))
    mixer.conv_taps[:, 16:] = 0
    output, _ = run(mixer, tokens())
    torch.testing.assert_close(output, mixer.conv_bias[16:].expand_as(output), **SAME)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["2mamba", "2mamba-e"])
def test_a_decay_of_1_is_none_and_one_of_0_leaves_the_token_itself(preset: str) -> None:
    mixer = mixer_of(Options(preset, n_heads=2, decay_bias=True))
    plain = mixer_of(Options(preset, n_heads=2, decay="none"))
    plain.load_state_dict(mixer.state_dict(), strict=False)
    mixer.decay_proj.bias.fill_(-1e3)
    torch.testing.assert_close(run(mixer, tokens())[0], run(plain, tokens())[0], **SAME)
    mixer.decay_proj.bias.fill_(1e3)
    mixer.conv_taps[:-1] = 0
    plain.conv_taps[:-1] = 0
    alone = [run(plain, x_B1D)[0] for x_B1D in tokens().split(1, 1)]
    torch.testing.assert_close(run(mixer, tokens())[0], torch.cat(alone, 1), **SAME)


@pytest.mark.parametrize("preset", ["2mamba", "linear"])
def test_a_query_without_weights_reads_0_with_finite_gradients(preset: str) -> None:
    mixer = mixer_of(Options(preset, taps=1, n_heads=2))
    with torch.no_grad():
        mixer.qkv_proj.weight[:8] = 0
    output, _ = run(mixer, tokens())
    assert output.count_nonzero() == 0
    output.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in mixer.parameters())


@torch.no_grad()
@pytest.mark.parametrize("preset", ["2mamba", "2mamba-e", "mamba-2s"])
def test_bf16_is_close_to_fp32(preset: str) -> None:
    mixer, x_BTD = mixer_of(Options(preset, n_heads=2)).float(), tokens().float()
    expected, _ = run(mixer, x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = run(mixer, x_BTD)
    assert (output.float() - expected).norm() < 2e-2 * expected.norm()


def test_a_decay_bias_begins_with_long_memories() -> None:
    mixer = mixer_of(Options("2mamba", decay_bias=True, n_heads=4))
    kept = torch.exp(-F.softplus(mixer.decay_proj.bias))
    torch.testing.assert_close(kept[[0, -1]].float(), torch.tensor([0.9, 0.999]))


def test_settings_beside_a_preset_win() -> None:
    assert Options("2mamba", power="exp").power == "exp"
    given = {name: getattr(Options("2mamba-e"), name) for name in PRESETS["2mamba"]}
    assert Options("2mamba", power="exp") == Options("2mamba", **given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "2mambo"}, "Did you mean 2mamba"),
        ({"activation": "none", "preset": "linear"}, "needs activation relu"),
        ({"preset": "2mamba-e", "norm": "rms"}, "needs norm sum"),
        ({"window": 3}, "power exp alone"),
        ({"decay": "none", "decay_bias": True}, "needs a decay"),
        ({"n_heads": 3}, "does not divide"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any], words: str) -> None:
    given = ModelConfig(
        d_model=8, layers=("decay_attention",), options={"decay_attention": options}
    )
    with pytest.raises(UserError, match=words):
        Model(given, vocab_size=10)


@pytest.mark.parametrize(
    ("mixer", "options", "small", "medium"),
    [
        ("softmax_attention", {}, 275.3, 735.4),
        ("decay_attention", {"preset": "2mamba"}, 275.8, 736.8),
        ("mamba2", {"preset": "as_committed"}, 259.6, 682.4),
    ],
)
def test_models_of_the_published_sizes_have_the_published_parameters(
    mixer: str, options: dict[str, Any], small: float, medium: float
) -> None:
    sizes = {small: (1024, 20, 16, 2048), medium: (1536, 27, 24, 3072)}
    for millions, (d_model, n_layers, n_heads, d_mlp) in sizes.items():
        given = {mixer: options | ({} if mixer == "mamba2" else {"n_heads": n_heads})}
        trunk = {"d_model": d_model, "d_mlp": d_mlp}
        counts = []
        for layers in (1, 2):
            config = ModelConfig(layers=(mixer,), options=given, n_layers=layers, **trunk)
            with torch.device("meta"):
                counts.append(parameter_count(Model(config, vocab_size=32_000)))
        total = counts[0] + (n_layers - 1) * (counts[1] - counts[0])
        assert round(total / 1e6, 1) == millions


def test_the_example_in_the_docs_builds_its_model() -> None:
    text = (ROOT / "docs/mixers.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.M | re.S)
    given = yaml.safe_load(example)["model"]
    config = ModelConfig(layers=tuple(given["layers"]), options=given["options"], n_layers=1)
    with torch.device("meta"):
        mixer: Any = Model(config, vocab_size=300).mixers[0]
    assert mixer.conv_taps.shape == (4, 3 * config.d_model)
    assert mixer.options.power == "squared"


def test_the_published_learning_rates() -> None:
    config = TrainConfig(learning_rate=1.0, final_learning_rate=0.0, warmup_steps=10_000)
    rates = [
        scheduled_rate(step, config, total_steps=1_000_000) for step in (0, 10_000, 90_000, 100_000)
    ]
    assert rates == pytest.approx([0.0, 1.0, 0.919, 0.909], abs=5e-4)
