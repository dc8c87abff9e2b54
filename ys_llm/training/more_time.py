"""What more minutes would bring, from runs that were measured: configs/sizes/measured.json.

A run's own curve does not tell: its learning rate falls to the end of its minutes, and the last
part of the curve is steeper for it than that of a longer run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ys_llm.config.schema import Config, ModelConfig
from ys_llm.config.shipped import shipped_folder
from ys_llm.config.sources import load_config, with_size
from ys_llm.errors import UserError, command_line
from ys_llm.system.machine import cpu_class

_BF16_CLASSES = ("AMX", "AVX512-BF16")  # these train in bf16, all others in fp32
MEASURED = {True: "AVX512-BF16", False: "AVX2"}  # the class that was measured, by that


@dataclass(frozen=True)
class Measured:
    """The best size after so many minutes; bits per byte of the held-out text."""

    minutes: float
    size: str
    bits_per_byte: float


def line_of(folder: Path) -> str:
    """The line of a run that was trained for `train.minutes`."""
    return more_time_line(load_config(folder / "config.yaml").config, folder)


def more_time_line(config: Config, folder: Path) -> str:
    """What was measured for the next larger number of minutes, and the command that trains it.

    It goes on with this run, or begins one of another size where that one was the best.
    """
    minutes, table = config.train.minutes, read_table()
    assert minutes is not None, "the run was not trained for a number of minutes"
    best = best_by_minutes(table["runs"], MEASURED[cpu_class() in _BF16_CLASSES])
    longer = next((one for one in best if one.minutes > minutes), None)
    if longer is None:
        command = command_line("train", run=config.run, minutes=f"{2 * minutes:g}")
        return f"more time    no run of more than {best[-1].minutes:g} min was measured; {command}"
    before = [one for one in best if one.minutes <= minutes]
    where = f" where {_result(before[-1])}" if before else ""
    return (
        f"more time    {_result(longer)}{where} (bits per byte of {table['text']}, "
        f"{table['machine']}, {MEASURED[cpu_class() in _BF16_CLASSES]}): "
        f"{_command(config, folder, longer)}"
    )


def read_table() -> dict[str, Any]:
    """The runs that were measured, with their text and machine."""
    path = shipped_folder() / "sizes" / "measured.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def best_by_minutes(runs: Sequence[dict[str, Any]], of_class: str) -> list[Measured]:
    """The best size of each number of minutes on this class, the fewest minutes first."""
    best: dict[float, Measured] = {}
    for run in runs:
        found = Measured(run["minutes"], run["size"], run["bits_per_byte"])
        before = best.get(found.minutes)
        if run["class"] == of_class and (not before or found.bits_per_byte < before.bits_per_byte):
            best[found.minutes] = found
    return [best[minutes] for minutes in sorted(best)]


def _result(found: Measured) -> str:
    return f"{found.minutes:g} min of size {found.size} came to {found.bits_per_byte:.3f}"


def _command(config: Config, folder: Path, longer: Measured) -> str:
    minutes = f"{longer.minutes:g}"
    if config.train.init_from or not _is_other_shape(config, longer.size):
        return command_line("train", run=config.run, minutes=minutes)
    new = f"{config.run}-{longer.size}"
    saved = str(folder / "config.yaml")
    return command_line("train", config=saved, size=longer.size, minutes=minutes, run=new)


def _is_other_shape(config: Config, size: str) -> bool:
    """Whether the size is one that this configuration can take, and another than its own."""
    try:
        sized = with_size(config, size)
    except UserError:  # it has fewer layers than the configuration names mixers
        return False
    return _shape(sized.model) != _shape(config.model)


def _shape(model: ModelConfig) -> tuple[object, ...]:
    return model.d_model, model.n_layers, model.d_mlp, model.options
