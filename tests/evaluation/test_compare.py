"""What a comparison calls a difference, and how it names code and layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ys_llm.config.schema import Config
from ys_llm.errors import UserError
from ys_llm.evaluation.compare import (
    SAME,
    check_configs,
    code_version,
    count_parameters,
    describe_layers,
    parameter_differences,
    setting_differences,
    tokenizer_differences,
)


def test_every_aspect_is_compared() -> None:
    first, second = Config(run="a"), Config(run="b")
    assert setting_differences([first, second]) == {}
    changed = replace(
        second,
        data=replace(second.data, path="elsewhere", validation_fraction=0.2),
        tokenizer=replace(second.tokenizer, vocab_size=300),
        train=replace(second.train, eval_tokens=1, seed=2, threads=3),
    )
    assert set(setting_differences([first, changed])) == set(SAME)


@pytest.mark.parametrize(("counts", "differ"), [((100, 102), False), ((1000, 1021), True)])
def test_parameter_counts_may_be_two_percent_apart(counts: tuple[int, int], differ: bool) -> None:
    assert bool(parameter_differences(dict(zip("ab", counts, strict=True)))) == differ


def test_tokenizers_of_other_contents_differ(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in "ab"]
    for run in runs:
        run.mkdir()
        (run / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert tokenizer_differences(runs) == {}
    (runs[1] / "tokenizer.json").write_text("{ }", encoding="utf-8")
    assert "differ" in tokenizer_differences(runs)["tokenizer"]


def test_layers_are_named_as_they_are_tiled_over_the_depth() -> None:
    model = replace(Config().model, n_layers=5, layers=("three_tier", "softmax_attention"))
    assert describe_layers(model) == "3 three_tier, 2 softmax_attention"


def test_layers_may_differ_where_all_else_is_equal() -> None:
    small = replace(Config().model, d_model=32, n_layers=2, d_mlp=64)
    mixed = replace(small, layers=("three_tier", "softmax_attention"))
    configs = [Config(run="a", model=small), Config(run="b", model=mixed)]
    assert count_parameters(configs[0]) != count_parameters(configs[1])
    check_configs(configs, allowed=["parameters"])
    with pytest.raises(UserError, match="two configurations have the run name a"):
        check_configs([configs[0], configs[0]], allowed=[])


def test_the_code_has_a_version() -> None:
    assert code_version().strip() != ""
