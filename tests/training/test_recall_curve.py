"""Where the held-out text names somebody twice, its evaluations say what the second time costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.training_runs import TrainRun, sentences, write_corpus

from ys_llm.runs.history import read_metrics


@pytest.mark.parametrize("named", [True, False])
def test_evaluations_give_the_loss_on_names_that_come_again(
    train_run: TrainRun, corpus: Path, named: bool
) -> None:
    texts = sentences(300)
    if named:  # each by a name of its own, or it would not be rare
        names = [f"Q{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
        pairs = zip(texts, names, strict=True)
        texts = [f"{text} There was {name}, and then {name} sat." for text, name in pairs]
    write_corpus(corpus, texts)
    run = train_run("data.validation_fraction=0.5", "train.max_steps=4", "train.eval_interval=2")
    rows = read_metrics(run.run / "metrics.jsonl")
    evaluated = [row["step"] for row in rows if "val_loss" in row]
    assert evaluated == [2, 4]
    with_names = [row["step"] for row in rows if row.get("val_names_again_loss", 0) > 0]
    assert with_names == (evaluated if named else [])
    # The summary's is that of the published weights: of the best evaluation.
    best = min((row for row in rows if "val_loss" in row), key=lambda row: row["val_loss"])
    assert run.val_names_again_loss == pytest.approx(best.get("val_names_again_loss"))
