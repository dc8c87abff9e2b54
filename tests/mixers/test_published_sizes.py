"""The configurations of published models have the parameters that are published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ys_llm.config.sources import load_config
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = {
    "lillm_39m": 39_596_544,
    "lillm_300m": 291_554_304,
    "lllm_68m": 67_963_648,  # its source: about 67.9 million, see the configuration
    "ys_v0_1": 120_513_182,
    # 192 channels more after the mixer than in the source: of the head, a layer and its norm
    "ys_v0_2": 98_980_708 + 192 * (56_668 + 960 + 3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_as_many_parameters_as_its_source(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml").config
    with torch.device("meta"):
        model = Model(config.model, vocab_size=config.tokenizer.vocab_size)
    assert parameter_count(model) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["lillm_39m", "lillm_300m"])
def test_a_preset_of_fine_tuning_starts_from_its_preset_of_pretraining(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml").config
    tuned = load_config(CONFIGS / f"{name}_sft.yaml").config
    assert (tuned.model, tuned.tokenizer) == (config.model, config.tokenizer)
    assert (tuned.train.init_from, tuned.train.seq_len) == (config.run, config.train.seq_len)
