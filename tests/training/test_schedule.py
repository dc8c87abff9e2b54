"""The learning rate as a function of the step."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ys_llm.config.schema import TrainConfig
from ys_llm.training.schedule import scheduled_rate

SCHEDULES = ("linear", "cosine", "constant_sqrt_cooldown")
PEAK, FINAL, WARMUP, TOTAL = 1e-2, 1e-3, 10, 110
CONFIG = TrainConfig(
    learning_rate=PEAK, final_learning_rate=FINAL, warmup_steps=WARMUP, cooldown_fraction=0.2
)


def rates(schedule: str, *, total_steps: int = TOTAL) -> list[float]:
    config = replace(CONFIG, schedule=schedule)
    return [scheduled_rate(step, config, total_steps=total_steps) for step in range(total_steps)]


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


def test_a_cooldown_may_begin_at_any_step_of_the_constant_phase() -> None:
    """A run that is given its end later has had the rates of one that knew it."""
    longest = rates("constant_sqrt_cooldown", total_steps=400)
    for total_steps in (30, 110, 250):
        shorter = rates("constant_sqrt_cooldown", total_steps=total_steps)
        begin = total_steps - round(0.2 * total_steps)
        assert shorter[:begin] == longest[:begin]
        assert shorter[begin + 1] < PEAK


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
        assert 0 < scheduled_rate(step, config, total_steps=total_steps) <= PEAK * (1 + 1e-12)
