"""Settings of an earlier version are refused, all at once, each with its new name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ys_llm.config.renamed import RENAMED
from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.config.strict_reader import field_helps
from ys_llm.errors import EXIT_USAGE, UserError

OLD = """\
data:
  layout: windows
train:
  keep_every: 100
  rollback_rate: 0.5
  begin_from: other
"""


def problems(path: Path | None, *overrides: str, **environment: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides=overrides, environment=environment)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value).splitlines()


def test_old_names_in_a_file_are_reported_together_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(OLD)
    assert problems(path) == [
        f"{path}:2: data.layout is now data.batching, and windows is now shuffled",
        f"{path}:4: train.keep_every is now train.keep_checkpoint_every",
        f"{path}:5: train.rollback_rate is now train.rollback_lr_factor",
        f"{path}:6: train.begin_from is now train.init_from",
    ]


def test_old_names_are_reported_together_with_other_problems() -> None:
    assert problems(None, "data.layout=streams", "train.sed=1", YS_TRAIN__KEEP_EVERY="5") == [
        "YS_TRAIN__KEEP_EVERY: train.keep_every is now train.keep_checkpoint_every",
        "--set: data.layout is now data.batching, and streams is now contiguous",
        "--set: train.sed is not a field. Did you mean seed?",
    ]


@pytest.mark.parametrize("old", RENAMED)
def test_every_old_name_leads_to_a_setting_that_exists(old: str) -> None:
    names = field_helps(Config)
    assert old not in names
    new = RENAMED[old].name
    assert new in names or new.startswith("model.options.")
    said = problems(None, f"{old}=1")
    assert said[0].startswith(f"--set: {old} is now ")


def test_options_are_recognised_under_the_name_of_any_mixer() -> None:
    said = problems(None, "model.options.some_mixer.local_every=4")
    assert (
        "model.options.some_mixer.local_every is now model.options.MIXER.local_interval" in said[0]
    )


def test_an_option_outside_its_mixer_is_told_where_it_belongs() -> None:
    said = problems(None, "model.options.d_state=4", "train.backend=cpp", "model.mixer=three_tier")
    assert said == [
        "--set: model.options.d_state is now model.options.MIXER.d_state",
        "--set: model.mixer is now model.layers, a list: [MIXER, ...]",
        "--set: train.backend is now by the name of the mixer: {MIXER: cpp}",
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [("# written by ys 0.1.0\n", "separate"), ("", "sentinel")],
    ids=["by-ys", "by-hand"],
)
def test_a_run_from_before_a_setting_goes_on_as_it_was(
    tmp_path: Path, written: str, expected: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(written + "model:\n  copy:\n    window: 8\n")
    assert load_config(path).config.model.copy.gate == expected
    path.write_text(written + "model:\n  copy:\n    gate: sentinel\n")
    assert load_config(path).config.model.copy.gate == "sentinel"
