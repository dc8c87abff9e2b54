"""Find the first non-finite tensor of a step whose loss or gradient is not finite.

`diagnose` computes the batch again and checks, in the order of computation:

    weights    parameters and buffers before the step
    state      the carried state that the batch started from
    forward    the first module with finite inputs and a non-finite output; in a mixer also the
               first such time step, and the entries of its state that are non-finite after it
    loss       the head and its cross-entropy, which are not modules
    backward   the first module, from the loss back, that turns a finite gradient non-finite
    norm       every gradient is finite, and the norm over all of them is not

"not reproduced": everything is finite now. "finite": the step was finite (a loss spike).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ys_llm.data.batches import Batch
from ys_llm.model.language_model import Model
from ys_llm.model.state import State, flatten
from ys_llm.training.recovery.report import Diagnosis


@dataclass(frozen=True)
class StepInputs:
    """What a batch is computed from besides the weights: enough to replay it bit for bit.

    `starts_BT` is what the model was given, None where the state is not reset at documents.
    """

    batch: Batch
    state: State | None
    starts_BT: Tensor | None
    random: Mapping[str, Tensor]


class _Position(NamedTuple):
    """A time step, and the rows of the batch that are non-finite there."""

    step: int | None = None
    rows: tuple[int, ...] = ()


class _GradientEvent(NamedTuple):
    """The gradient of a module's output, or of its input; `position` is its last non-finite one."""

    name: str
    of_input: bool
    finite: bool
    position: _Position


def capture_inputs(batch: Batch, state: State | None, starts_BT: Tensor | None) -> StepInputs:
    """The inputs of a forward pass; call it before the pass, as it reads the random state."""
    random = {"cpu": torch.get_rng_state()}
    if batch.inputs_BT.is_cuda:
        random["cuda"] = torch.cuda.get_rng_state(batch.inputs_BT.device)
    return StepInputs(batch, state, starts_BT, random)


def diagnose_step(
    model: Model, inputs: Sequence[StepInputs], *, autocast: torch.autocast
) -> tuple[int, Diagnosis]:
    """Index of the first non-finite batch among a step's accumulated ones, and its diagnosis.

    Where no batch reproduces the failure, it is the index of the last one.
    """
    diagnosis = Diagnosis("not reproduced")
    for index, batch_inputs in enumerate(inputs):
        diagnosis = diagnose(model, batch_inputs, autocast=autocast)
        if diagnosis.kind != "not reproduced":
            return index, diagnosis
    return len(inputs) - 1, diagnosis


def diagnose(model: Model, inputs: StepInputs, *, autocast: torch.autocast) -> Diagnosis:
    """Compute the batch again and name the first non-finite tensor.

    Weights, mode and random state do not change; gradients are dropped.
    """
    device = inputs.batch.inputs_BT.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.zero_grad(set_to_none=True)
        try:
            found = _bad_weights(model) or _bad_state(model, inputs.state)
            return found or _bad_pass(model, inputs, autocast)
        finally:
            model.zero_grad(set_to_none=True)


def _bad_weights(model: Model) -> Diagnosis | None:
    bad = {
        name: count
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if (count := int(tensor.numel() - torch.isfinite(tensor).sum()))
    }
    if not bad:
        return None
    first, count = next(iter(bad)), sum(bad.values())
    return Diagnosis("weights", first, _layer(first), parameters=tuple(bad), non_finite_count=count)


def _bad_state(model: Model, state: State | None) -> Diagnosis | None:
    if state is None:
        return None
    blocks = zip(model.config.order, state["layers"], strict=True)
    trees = [(f"blocks.{number}.mixer", layer) for number, layer in blocks]
    parts = {"cross": "cross_decoder", "copy": "copy_tier"}
    trees += [(where, state[name]) for name, where in parts.items() if name in state]
    for where, tree in trees:
        if bad := _bad_entries(flatten(tree)):
            return Diagnosis("state", where, _layer(where), tuple(bad), rows=_rows_of(bad))
    return None


def _bad_pass(model: Model, inputs: StepInputs, autocast: torch.autocast) -> Diagnosis:
    batch = inputs.batch
    hooks = _ModuleHooks(model, batch.inputs_BT.shape)
    _restore(inputs)
    with hooks, autocast:
        loss, _ = model(
            batch.inputs_BT, inputs.state, inputs.starts_BT, targets_BT=batch.targets_BT
        )
    if hooks.culprit:
        return _in_forward(hooks, autocast)
    if not math.isfinite(loss.item()):
        return _in_head(model, inputs, autocast)
    torch.autograd.backward(loss)
    found = _in_backward(model, hooks) or _in_norm(model)
    return replace(found, loss=loss.item(), grad_norm=_grad_norm(model))


def _restore(inputs: StepInputs) -> None:
    device = inputs.batch.inputs_BT.device
    torch.set_rng_state(inputs.random["cpu"])
    if device.type == "cuda" and "cuda" in inputs.random:
        torch.cuda.set_rng_state(inputs.random["cuda"], device)


class _ModuleHooks:
    """Hooks on every module for one forward and backward pass.

    `culprit` is the first module with finite inputs and a non-finite output, `position` where the
    output is non-finite, `calls` the arguments of each mixer, `events` the gradients in the order
    of the backward pass.
    """

    def __init__(self, model: Model, shape_BT: torch.Size) -> None:
        self.model, self.shape_BT = model, shape_BT
        blocks: Any = model.blocks
        self.mixers = {f"blocks.{n}.mixer": block.mixer for n, block in enumerate(blocks)}
        self.culprit, self.position = "", _Position()
        self.calls: dict[str, tuple[Any, ...]] = {}
        self.events: list[_GradientEvent] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "_ModuleHooks":
        for name, module in self.model.named_modules():
            if name:  # not the model itself: its output, the loss, is checked elsewhere
                before: Any = partial(self._before, name)
                after: Any = partial(self._after, name)
                # Modules with such hooks keep their kernels, so that the pass is bit-exact.
                before.observes_only = after.observes_only = True
                self._handles += [
                    module.register_forward_pre_hook(before),
                    module.register_forward_hook(after),
                ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def mixer_of(self, name: str) -> str:
        """The mixer that this module is or belongs to; "" where it is not part of one."""
        return next((m for m in self.mixers if f"{name}.".startswith(f"{m}.")), "")

    def _before(self, name: str, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if name in self.mixers and not self.culprit:  # a block may be applied again later
            self.calls[name] = args
        # A view for each reader: its hook sees this module's gradient, not the sum over readers.
        return tuple(
            arg.view_as(arg) if torch.is_tensor(arg) and arg.requires_grad else arg for arg in args
        )

    def _after(self, name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs = list(_tensors(output))
        bad = [tensor for tensor in outputs if not _finite(tensor)]
        if not self.culprit and bad and all(map(_finite, _tensors(args))):
            self.culprit = name
            self.position = self._position(name, bad[0], last=False)
        read = [arg for arg in args if torch.is_tensor(arg) and not any(arg is m for m in outputs)]
        for tensors, of_input in ((outputs, False), (read, True)):
            for tensor in tensors:
                if tensor.requires_grad:
                    tensor.register_hook(partial(self._gradient, name, of_input))

    def _gradient(self, name: str, of_input: bool, grad: Tensor | None) -> None:
        if grad is None:  # an output that the loss does not depend on, such as a carried state
            return
        finite = _finite(grad)
        position = _Position() if finite else self._position(name, grad, last=True)
        self.events.append(_GradientEvent(name, of_input, finite, position))

    def _position(self, name: str, tensor: Tensor, *, last: bool) -> _Position:
        # Inside a mixer the first two dimensions may be anything.
        inside = self.mixer_of(name) not in ("", name)
        if inside or tensor.shape[:2] != self.shape_BT:
            return _Position()
        bad_BT = ~torch.isfinite(tensor).reshape(*self.shape_BT, -1).all(-1)
        return _position(bad_BT, last=last)


def _position(bad_BT: Tensor, *, last: bool = False) -> _Position:
    steps = _indices(bad_BT.any(0))
    if not steps:
        return _Position()
    step = steps[-1 if last else 0]
    return _Position(step, _indices(bad_BT[:, step]))


def _in_forward(hooks: _ModuleHooks, autocast: torch.autocast) -> Diagnosis:
    where, mixer = hooks.culprit, hooks.mixer_of(hooks.culprit)
    found = Diagnosis("forward", where, _layer(where), (), *hooks.position)
    if not mixer:
        return found
    with torch.no_grad(), autocast:
        entries, position = _first_bad_step(hooks.mixers[mixer], *hooks.calls[mixer])
    if position.step is None:
        return found
    return replace(found, entries=entries, **position._asdict())


def _first_bad_step(
    mixer: Any, x_BTD: Tensor, state: Any, starts_BT: Tensor | None, position_B: Tensor
) -> tuple[tuple[str, ...], _Position]:
    """The first time step with a non-finite output or state, and the entries of that state.

    By the split law a mixer may run on any prefix, so bisection needs log2 T of them.
    """

    def bad_after(length: int) -> dict[str, tuple[int, ...]]:
        """The non-finite entries after the first `length` steps."""
        starts = None if starts_BT is None else starts_BT[:, :length]
        y_BTD, after = mixer(x_BTD[:, :length], state, starts, position_B)
        return _bad_entries({"output": y_BTD, **flatten(after)})

    good, bad = 0, x_BTD.shape[1]
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if bad_after(middle) else (middle, bad)
    found = bad_after(bad)
    if not found:  # the full pass was non-finite, and its prefixes are not
        return (), _Position()
    entries = tuple(name for name in found if name != "output")
    return entries, _Position(bad - 1, _rows_of(found))


def _in_head(model: Model, inputs: StepInputs, autocast: torch.autocast) -> Diagnosis:
    """Where the logits are non-finite, or else their cross-entropy; one row at a time."""
    batch = inputs.batch
    _restore(inputs)
    with torch.no_grad(), autocast:
        x_BTD = _input_of_head(model, inputs)
        logits_bad, loss_bad = [], []
        for x_TD, targets_T in zip(x_BTD, batch.targets_BT, strict=True):
            logits_TV = model.output(x_TD).float()
            losses_T = nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")
            logits_bad.append(~torch.isfinite(logits_TV).all(-1))
            loss_bad.append(~torch.isfinite(losses_T))
    position = _position(torch.stack(logits_bad))
    if position.step is not None:
        return Diagnosis("loss", "output", None, (), *position)
    return Diagnosis("loss", "cross_entropy", None, (), *_position(torch.stack(loss_bad)))


def _input_of_head(model: Model, inputs: StepInputs) -> Tensor:
    seen: list[Tensor] = []
    handle = model.final_dropout.register_forward_hook(lambda _, __, x_BTD: seen.append(x_BTD))
    try:
        model(inputs.batch.inputs_BT, inputs.state, inputs.starts_BT, logits="last")
    finally:
        handle.remove()
    return seen[0]


def _in_backward(model: Model, hooks: _ModuleHooks) -> Diagnosis | None:
    bad = tuple(name for name, grad in _gradients(model) if not _finite(grad))
    first = next((event for event in hooks.events if not event.finite), None)
    if first is None and not bad:
        return None
    if first is None:
        where = bad[-1].rpartition(".")[0]  # parameters are listed in the order of the forward pass
    elif first.of_input:
        where = first.name
    else:  # the gradient of an output comes from the module around this one, or from the loss
        where = first.name.rpartition(".")[0] or "output"
    module = hooks.mixer_of(where) or where
    inputs = [e.position for e in hooks.events if e.name == module and e.of_input and not e.finite]
    position = next(iter(inputs), first.position if first else _Position())
    return Diagnosis("backward", where, _layer(where), (), *position, parameters=bad)


def _in_norm(model: Model) -> Diagnosis:
    if math.isfinite(_grad_norm(model)):
        return Diagnosis("not reproduced")
    largest, _ = max(_gradients(model), key=lambda pair: float(pair[1].abs().max()))
    return Diagnosis("norm", largest, _layer(largest))


def _gradients(model: Model) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


def _grad_norm(model: Model) -> float:
    return get_total_norm([grad for _, grad in _gradients(model)]).item()


def _bad_entries(layer: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The non-finite entries of a mixer's or the copy tier's state, each with the rows that are."""
    tensors = {name: v for name, v in layer.items() if torch.is_tensor(v) and v.dim() > 1}
    bad = {name: _indices(~torch.isfinite(v).flatten(1).all(1)) for name, v in tensors.items()}
    return {name: rows for name, rows in bad.items() if rows}


def _rows_of(bad: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({row for rows in bad.values() for row in rows}))


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blocks" else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())
