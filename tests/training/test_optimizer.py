"""The learning rate as a function of the step, and which parameters decay."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.config.schema import ModelConfig, TrainConfig
from ys_llm.model.language_model import Model
from ys_llm.training.optimizer import learning_rate, make_optimizer, set_learning_rate

SCHEDULES = ("linear", "cosine", "constant_sqrt_cooldown")
PEAK, FINAL, WARMUP, TOTAL = 1e-2, 1e-3, 10, 110
CONFIG = TrainConfig(
    learning_rate=PEAK, final_learning_rate=FINAL, warmup_steps=WARMUP, cooldown_fraction=0.2
)


def rates(schedule: str, *, total_steps: int = TOTAL) -> list[float]:
    config = replace(CONFIG, schedule=schedule)
    return [learning_rate(step, config, total_steps=total_steps) for step in range(total_steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_climbs_evenly_to_the_peak(schedule: str) -> None:
    climb = rates(schedule)[: WARMUP + 1]
    assert climb[0] > 0
    assert climb[-1] == pytest.approx(PEAK)
    steps = [after - before for before, after in pairwise(climb)]
    assert steps == pytest.approx([PEAK / (WARMUP + 1)] * WARMUP)


@pytest.mark.parametrize(
    ("schedule", "step", "share"),
    [
        ("linear", 60, 0.5),  # half of the 100 steps after warm-up are done
        ("linear", 85, 0.25),
        ("cosine", 60, 0.5),
        ("cosine", 85, 0.1464466),  # (1 + cos(3 pi / 4)) / 2
        ("constant_sqrt_cooldown", 88, 1.0),  # the last 22 of 110 steps are the cool-down
        ("constant_sqrt_cooldown", 99, 0.2928932),  # 1 - sqrt(1 / 2)
    ],
)
def test_a_schedule_passes_through_its_known_points(schedule: str, step: int, share: float) -> None:
    assert rates(schedule)[step] == pytest.approx(FINAL + share * (PEAK - FINAL))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_never_rises_after_warm_up_and_ends_near_the_final_one(schedule: str) -> None:
    after = rates(schedule)[WARMUP:]
    assert all(later <= earlier for earlier, later in pairwise(after))
    assert FINAL < after[-1] < FINAL + 0.05 * (PEAK - FINAL)


@given(
    schedule=st.sampled_from(SCHEDULES),
    total_steps=st.integers(1, 500),
    warmup_steps=st.integers(0, 600),
    cooldown_fraction=st.floats(0, 0.99),
)
def test_the_rate_is_positive_and_never_over_the_peak(
    schedule: str, total_steps: int, warmup_steps: int, cooldown_fraction: float
) -> None:
    config = TrainConfig(
        learning_rate=PEAK,
        schedule=schedule,
        warmup_steps=warmup_steps,
        cooldown_fraction=cooldown_fraction,
    )
    for step in {0, total_steps // 2, total_steps - 1}:
        assert 0 < learning_rate(step, config, total_steps=total_steps) <= PEAK * (1 + 1e-12)


def small_model(**changes: object) -> Model:
    config = ModelConfig(
        d_model=16, n_layers=1, d_mlp=24, options={"d_state": 8, "n_heads": 2}, **changes
    )
    return Model(config, vocab_size=20)


def test_matrices_decay_and_nothing_else_does() -> None:
    model = small_model()
    optimizer = make_optimizer(model, replace(CONFIG, weight_decay=0.5))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - PEAK * 0.5 if parameter.dim() >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_optimised_once(tied: bool) -> None:
    model = small_model(tie_embeddings=tied)
    groups = make_optimizer(model, CONFIG).param_groups
    optimised = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimised) == sorted(id(parameter) for parameter in model.parameters())


def test_frozen_parameters_are_left_alone() -> None:
    model = small_model()
    model.embedding.weight.requires_grad_(False)
    groups = make_optimizer(model, CONFIG).param_groups
    assert all(model.embedding.weight is not p for group in groups for p in group["params"])


def test_the_first_step_moves_each_weight_by_the_rate_against_its_gradient() -> None:
    model = small_model()
    optimizer = make_optimizer(model, replace(CONFIG, weight_decay=0.0))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter).sign()
    set_learning_rate(optimizer, 0.25)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = before[name] - 0.25 * parameter.grad  # Adam's first step is g / |g|
        torch.testing.assert_close(parameter.detach(), expected, msg=name)
