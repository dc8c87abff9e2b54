"""The diagnosis of a step that several processes have shared: rows are those of the whole batch."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ys_llm.training.ranks.group import Ranks
from ys_llm.training.recovery.diagnosis import StepInputs, diagnose_step
from ys_llm.training.recovery.report import Diagnosis
from ys_llm.training.trainer import Run

_TENSORS = ("inputs_BT", "targets_BT", "starts_BT")
_LISTS = ("entries", "rows", "parameters")


def diagnosed_together(
    run: Run, inputs: Sequence[StepInputs], batch_size: int
) -> tuple[int, Diagnosis]:
    """What `diagnose_step` finds; of several processes each looks at its rows, the first counts."""
    index, found = diagnose_step(run.model, inputs, autocast=run.compute.autocast())
    ranks = run.ranks
    if ranks.is_alone:
        return index, found
    first_row = ranks.rows(batch_size).start
    found = replace(found, rows=tuple(row + first_row for row in found.rows))
    is_reproduced = ranks.gathered([found.kind != "not reproduced"])
    patient = next((rank for rank, (bad,) in enumerate(is_reproduced) if bad), 0)
    told: dict[str, Any] = ranks.tell({"index": index, **asdict(found)}, source=patient)
    return told.pop("index"), Diagnosis(**told | {name: tuple(told[name]) for name in _LISTS})


def whole_inputs(ranks: Ranks, inputs: StepInputs) -> StepInputs | None:
    """The inputs with the rows of all processes, on the first one; None on the others."""
    if ranks.is_alone:
        return inputs
    batch = inputs.batch
    tree: dict[str, Any] = {
        "batch": {name: getattr(batch, name) for name in _TENSORS},
        "state": inputs.state or {},
    }
    whole = ranks.gather_rows(tree)
    if whole is None:
        return None
    starts_BT = None if inputs.starts_BT is None else whole["batch"]["starts_BT"]
    return StepInputs(
        replace(batch, **whole["batch"], share=1.0),
        whole["state"] or None,
        starts_BT,
        inputs.random,
    )
