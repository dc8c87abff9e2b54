"""What a comparison calls a difference, and how it names code and layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.errors import UserError
from ys_llm.evaluation.compare import (
    COMPARED,
    NO_INFLUENCE,
    check_configs,
    code_version,
    count_parameters,
    covers,
    describe_layers,
    parameter_differences,
    refuse,
    setting_differences,
    settings_of,
)


def test_every_setting_is_compared() -> None:
    first, second = Config(run="a"), Config(run="b")
    assert setting_differences([first, second], ignoring=["run"]) == {}
    changed = replace(
        second,
        data=replace(second.data, path="elsewhere", reset_at_document=False),
        model=replace(second.model, dropout=0.1, options={"three_tier": {"d_state": 8}}),
        train=replace(second.train, weight_decay=0.2),
    )
    found = setting_differences([first, changed], ignoring=[*COMPARED, *NO_INFLUENCE])
    assert set(found) == {
        "data.path",
        "data.reset_at_document",
        "model.dropout",
        "train.weight_decay",
    }
    assert found["train.weight_decay"] == "train.weight_decay is 0.1 in a, 0.2 in b"


@pytest.mark.parametrize("name", [*COMPARED, *NO_INFLUENCE])
def test_what_is_not_compared_is_a_setting(name: str) -> None:
    assert any(covers(name, setting) for setting in settings_of(Config()))


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        (["train"], "tokenizer.kind"),
        (["train.seed"], "train.threads"),
        (["train.seed", "train.threads", "tokenizer"], ""),
    ],
)
def test_settings_and_sections_of_them_may_be_allowed(allowed: list[str], refused: str) -> None:
    names = ("train.seed", "train.threads", "tokenizer.kind")
    found = {name: f"{name} is 1 in a, 2 in b" for name in names}
    if not refused:
        refuse(found, allowed=allowed)
        return
    with pytest.raises(UserError, match=f"or type --allow-different {refused}"):
        refuse(found, allowed=allowed)


def test_other_held_out_text_is_never_allowed() -> None:
    found = {"data.validation_fraction": "data.validation_fraction is 0.1 in a, 0.2 in b"}
    with pytest.raises(UserError, match=r"0\.2 in b") as caught:
        refuse(found, allowed=["data"])
    assert "--allow-different" not in str(caught.value)


def test_a_difference_that_does_not_exist_cannot_be_allowed() -> None:
    with pytest.raises(UserError, match="--allow-different seed: there is no such setting"):
        check_configs([Config(run="a"), Config(run="b")], allowed=["seed"])


@pytest.mark.parametrize("name", ["train.batch_size", "model.size"])
def test_what_each_run_would_choose_by_itself_is_refused(name: str) -> None:
    words = [f"{name}=auto", "train.minutes=1"]
    configs = [load_config(None, overrides=[*words, f"run={run}"]).config for run in "ab"]
    with pytest.raises(UserError, match=f"{name} is auto in a"):
        check_configs(configs, allowed=[])


@pytest.mark.parametrize(("counts", "differ"), [((100, 102), False), ((1000, 1021), True)])
def test_parameter_counts_may_be_two_percent_apart(counts: tuple[int, int], differ: bool) -> None:
    assert bool(parameter_differences(dict(zip("ab", counts, strict=True)))) == differ


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
