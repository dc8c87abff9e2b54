"""The learning curves of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ys_llm.training.trials import learning_curves


@pytest.mark.parametrize(
    ("evaluated", "measure", "values"),
    [
        ((2, 4), "Training loss, nats per token", (4.0, 3.0, 2.0, 1.0)),
        ((2, 3, 4), "Bits per byte of the held-out text", (0.3, 0.2, 0.1)),
    ],
)
def test_a_curve_shows_one_measure_alone(
    evaluated: tuple[int, ...], measure: str, values: tuple[float, ...], tmp_path: Path
) -> None:
    result: Any = SimpleNamespace(flops_per_token=10)
    rows = [
        {"step": step, "loss": float(5 - step), "tokens": 100 * step, "seconds": step}
        | ({"val_bits_per_byte": (5 - step) / 10} if step in evaluated else {})
        for step in range(1, 5)
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (curve,), shown = learning_curves([("a", "a", result)], tmp_path)
    assert (shown, curve.values) == (measure, values)
