"""`peft` loads an adapter of ours beside an export of its base, and computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.training_runs import TINY, sentences, write_corpus

from ys_llm.config.sources import load_config
from ys_llm.runs.export import export_run
from ys_llm.runs.model_files import load_run
from ys_llm.training.loop import train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_gives_the_logits_of_our_own_adapter(
    tmp_path: Path, threads_as_they_were: None
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    write_corpus(tmp_path / "corpus", sentences(40))
    runs, own = tmp_path / "runs", [*TINY, f"data.path={tmp_path / 'corpus'}"]
    llama = [*own, "model.layers=[softmax_attention]", "train.dtype=fp32", "train.threads=1"]
    train(load_config(None, overrides=[*llama, "run=base"]), runs_dir=runs)
    lora = ["train.init_from=base", "sft.method=lora", "sft.lora.rank=2", "run=tuned"]
    train(load_config(None, overrides=[*llama, *lora, "train.learning_rate=0.05"]), runs_dir=runs)
    export_run(load_run(runs / "base"), "hf", tmp_path / "hf")
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", trust_remote_code=True
    )
    tokens = torch.arange(2, 40)[None]
    with torch.no_grad():
        before = base(tokens).logits
        loaded = peft.PeftModel.from_pretrained(base, str(runs / "tuned"))
        found = loaded(tokens).logits
        expected = load_run(runs / "tuned").model(tokens)[0]
    assert (found - before).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
