"""Which tensor went bad first, where a step's loss or gradient is not finite.

`diagnose` computes the batch once more and looks where numbers come from, in their own order:

    weights    parameters and buffers that were bad before the step
    state      the carried state the batch began with
    forward    the first module that makes a bad output of good inputs; in a mixer also the first
               bad step and the entries of its state that are bad after it
    loss       the head and its cross-entropy, which are no modules
    backward   the first module, from the loss back, that makes a bad gradient of a good one
    norm       every gradient is finite, and their common norm is not

"not reproduced" is the answer where nothing is bad; "finite" is for steps that had no bad number.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ys_llm.data.batches import Batch
from ys_llm.model.language_model import Model
from ys_llm.model.state import State, flatten

Kind = Literal[
    "weights", "state", "forward", "loss", "backward", "norm", "not reproduced", "finite"
]
_SHOWN = 4  # rows or tensors that a sentence lists


@dataclass(frozen=True)
class Scene:
    """What a batch is computed from besides the weights: enough to compute it again, bit for bit.

    `starts_BT` is what the model was given, None where documents are not told apart.
    """

    batch: Batch
    state: State | None
    starts_BT: Tensor | None
    random: Mapping[str, Tensor]


@dataclass(frozen=True)
class Finding:
    """The first bad tensor. `step` and `rows` count from 0 in the batch's T and B.

    `where` names a module or parameter as torch does; `tiers` are entries of a mixer's state;
    `parameters` are all that are bad themselves ("weights") or by their gradient.
    """

    kind: Kind
    where: str = ""
    layer: int | None = None
    tiers: tuple[str, ...] = ()
    step: int | None = None
    rows: tuple[int, ...] = ()
    parameters: tuple[str, ...] = ()
    bad_numbers: int = 0
    loss: float | None = None
    grad_norm: float | None = None

    @property
    def sentence(self) -> str:
        """The finding in one line."""
        listed, tiers = _listed(self.parameters), _listed(self.tiers)
        match self.kind:
            case "weights":
                return f"{self.bad_numbers:,} weights not finite before the step, in {listed}"
            case "state":
                return f"carried state of layer {self.layer}: {tiers} not finite{self._rows(' in')}"
            case "forward":
                what = f"{tiers} state" if self.tiers else "output"
                good = "(weights, carried state and inputs finite)"
                return f"{self.where}: {what} not finite{self._place('on')} {good}"
            case "loss":
                good = "(what the head reads is finite)"
                return f"{self.where}: not finite{self._place('on')} {good}"
            case "backward":
                found = f"{self.where}: gradient not finite{self._place('back')}"
                bad = f"; not finite for {listed}" if listed else ""
                return f"{found} (loss {self.loss:.4g} and all activations finite){bad}"
            case "norm":
                found = "the norm of all gradients overflows, though each of them is finite"
                return f"{found}; the largest is that of {self.where}"
        figures = f"loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}"
        if self.kind == "finite":
            return f"every number of the step is finite ({figures})"
        return (
            f"not reproduced: the same weights, batch, state and random numbers now give {figures},"
            f" which points to the memory or processor here, or to kernels that are not exact"
        )

    def _place(self, direction: str) -> str:
        if self.step is None:
            return self._rows(" in")
        return f" from step {self.step}{self._rows(' of')} {direction}"

    def _rows(self, preposition: str) -> str:
        noun = "row" if len(self.rows) == 1 else "rows"
        return f"{preposition} {noun} {_listed(self.rows)}" if self.rows else ""


class _Place(NamedTuple):
    """A step, and the rows of the batch that are bad there."""

    step: int | None = None
    rows: tuple[int, ...] = ()


class _Flow(NamedTuple):
    """A gradient as it came to a module or left it; `place` is the last bad step."""

    name: str
    leaves: bool
    finite: bool
    place: _Place


def observe(batch: Batch, state: State | None, starts_BT: Tensor | None) -> Scene:
    """The scene of a forward pass, to be taken before it: the random state is the present one."""
    random = {"cpu": torch.get_rng_state()}
    if batch.inputs_BT.is_cuda:
        random["cuda"] = torch.cuda.get_rng_state(batch.inputs_BT.device)
    return Scene(batch, state, starts_BT, random)


def first_bad(
    model: Model, scenes: Sequence[Scene], *, autocast: torch.autocast
) -> tuple[int, Finding]:
    """Which of a step's accumulated batches is the bad one, and what is found in it.

    The last one where none is: the finding is then that the bad number cannot be reproduced.
    """
    for number, scene in enumerate(scenes, start=1):
        finding = diagnose(model, scene, autocast=autocast)
        if finding.kind != "not reproduced" or number == len(scenes):
            return number - 1, finding
    raise AssertionError("a step reads at least one batch")


def diagnose(model: Model, scene: Scene, *, autocast: torch.autocast) -> Finding:
    """Compute the scene again and name the first bad tensor.

    Weights, mode and random state are left as they were; gradients are dropped.
    """
    device = scene.batch.inputs_BT.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.zero_grad(set_to_none=True)
        try:
            found = _bad_weights(model) or _bad_state(scene.state)
            return found or _bad_pass(model, scene, autocast)
        finally:
            model.zero_grad(set_to_none=True)


def _bad_weights(model: Model) -> Finding | None:
    bad = {
        name: count
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if (count := int(tensor.numel() - torch.isfinite(tensor).sum()))
    }
    if not bad:
        return None
    first, count = next(iter(bad)), sum(bad.values())
    return Finding("weights", first, _layer(first), parameters=tuple(bad), bad_numbers=count)


def _bad_state(state: State | None) -> Finding | None:
    for number, layer in enumerate([] if state is None else state["layers"]):
        bad = _bad_entries(flatten(layer))
        if bad:
            where = f"blocks.{number}.mixer"
            return Finding("state", where, number, tuple(bad), rows=_rows_of(bad))
    return None


def _bad_pass(model: Model, scene: Scene, autocast: torch.autocast) -> Finding:
    batch = scene.batch
    watch = _Watch(model, batch.inputs_BT.shape)
    _restore(scene)
    with watch, autocast:
        loss, _ = model(batch.inputs_BT, scene.state, scene.starts_BT, targets_BT=batch.targets_BT)
    if watch.culprit:
        return _in_forward(watch, autocast)
    if not math.isfinite(loss.item()):
        return _in_head(model, scene, autocast)
    torch.autograd.backward(loss)
    found = _in_backward(model, watch) or _in_norm(model)
    return replace(found, loss=loss.item(), grad_norm=_grad_norm(model))


def _restore(scene: Scene) -> None:
    device = scene.batch.inputs_BT.device
    torch.set_rng_state(scene.random["cpu"])
    if device.type == "cuda" and "cuda" in scene.random:
        torch.cuda.set_rng_state(scene.random["cuda"], device)


class _Watch:
    """Hooks on every module for one pass forward and back.

    `culprit` is the first module with a bad output and good inputs, `place` where its output is
    bad, `calls` what each mixer was given, `flows` the gradients in the order they were made.
    """

    def __init__(self, model: Model, shape_BT: torch.Size) -> None:
        self.model, self.shape_BT = model, shape_BT
        blocks: Any = model.blocks
        self.mixers = {f"blocks.{n}.mixer": block.mixer for n, block in enumerate(blocks)}
        self.culprit, self.place = "", _Place()
        self.calls: dict[str, tuple[Any, ...]] = {}
        self.flows: list[_Flow] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "_Watch":
        for name, module in self.model.named_modules():
            if name:  # not the model itself: of its output, the loss, more is said elsewhere
                before: Any = partial(self._before, name)
                after: Any = partial(self._after, name)
                # So that the pass takes the kernels of the step, and has its bits.
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
        """The mixer that this module is, or is part of; "" where there is none."""
        return next((m for m in self.mixers if f"{name}.".startswith(f"{m}.")), "")

    def _before(self, name: str, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if name in self.mixers:
            self.calls[name] = args
        # A view of its own for each reader: the gradient that leaves here, not the sum of all.
        return tuple(
            arg.view_as(arg) if torch.is_tensor(arg) and arg.requires_grad else arg for arg in args
        )

    def _after(self, name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        made = list(_tensors(output))
        bad = [tensor for tensor in made if not _finite(tensor)]
        if not self.culprit and bad and all(map(_finite, _tensors(args))):
            self.culprit, self.place = name, self._placed(name, bad[0], last=False)
        read = [arg for arg in args if torch.is_tensor(arg) and not any(arg is m for m in made)]
        for tensors, leaves in ((made, False), (read, True)):
            for tensor in tensors:
                if tensor.requires_grad:
                    tensor.register_hook(partial(self._flowed, name, leaves))

    def _flowed(self, name: str, leaves: bool, grad: Tensor | None) -> None:
        if grad is None:  # an output that the loss does not depend on, as a carried state
            return
        place = _Place() if _finite(grad) else self._placed(name, grad, last=True)
        self.flows.append(_Flow(name, leaves, _finite(grad), place))

    def _placed(self, name: str, tensor: Tensor, *, last: bool) -> _Place:
        # Inside a mixer the first two dimensions may be anything.
        inside = self.mixer_of(name) not in ("", name)
        if inside or tensor.shape[:2] != self.shape_BT:
            return _Place()
        bad_BT = ~torch.isfinite(tensor).reshape(*self.shape_BT, -1).all(-1)
        return _place(bad_BT, last=last)


def _place(bad_BT: Tensor, *, last: bool = False) -> _Place:
    steps = _indices(bad_BT.any(0))
    if not steps:
        return _Place()
    step = steps[-1 if last else 0]
    return _Place(step, _indices(bad_BT[:, step]))


def _in_forward(watch: _Watch, autocast: torch.autocast) -> Finding:
    where, mixer = watch.culprit, watch.mixer_of(watch.culprit)
    found = Finding("forward", where, _layer(where), (), *watch.place)
    if not mixer:
        return found
    with torch.no_grad(), autocast:
        tiers, place = _first_bad_step(watch.mixers[mixer], *watch.calls[mixer])
    return found if place.step is None else replace(found, tiers=tiers, **place._asdict())


def _first_bad_step(
    mixer: Any, x_BTD: Tensor, state: Any, starts_BT: Tensor | None, position_B: Tensor
) -> tuple[tuple[str, ...], _Place]:
    """Entries of the state that are bad first, and the step after which they or the output are.

    By the split law a mixer may be run on any prefix: halving finds the step in log2 T of them.
    """

    def bad_after(length: int) -> dict[str, tuple[int, ...]]:
        starts = None if starts_BT is None else starts_BT[:, :length]
        y_BTD, after = mixer(x_BTD[:, :length], state, starts, position_B)
        return _bad_entries({"output": y_BTD, **flatten(after)})

    good, bad = 0, x_BTD.shape[1]
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if bad_after(middle) else (middle, bad)
    found = bad_after(bad)
    if not found:  # the whole pass was bad, and in pieces it is good
        return (), _Place()
    tiers = tuple(name for name in found if name != "output")
    return tiers, _Place(bad - 1, _rows_of(found))


def _in_head(model: Model, scene: Scene, autocast: torch.autocast) -> Finding:
    """Whether the logits are bad or only their cross-entropy, and where; one row at a time."""
    batch = scene.batch
    _restore(scene)
    with torch.no_grad(), autocast:
        x_BTD = _read_by_head(model, scene)
        logits_bad, loss_bad = [], []
        for x_TD, targets_T in zip(x_BTD, batch.targets_BT, strict=True):
            logits_TV = model.output(x_TD).float()
            losses_T = nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")
            logits_bad.append(~torch.isfinite(logits_TV).all(-1))
            loss_bad.append(~torch.isfinite(losses_T))
    place = _place(torch.stack(logits_bad))
    if place.step is not None:
        return Finding("loss", "output", None, (), *place)
    return Finding("loss", "cross_entropy", None, (), *_place(torch.stack(loss_bad)))


def _read_by_head(model: Model, scene: Scene) -> Tensor:
    seen: list[Tensor] = []
    handle = model.final_dropout.register_forward_hook(lambda _, __, x_BTD: seen.append(x_BTD))
    try:
        model(scene.batch.inputs_BT, scene.state, scene.starts_BT, logits="last")
    finally:
        handle.remove()
    return seen[0]


def _in_backward(model: Model, watch: _Watch) -> Finding | None:
    bad = tuple(name for name, grad in _gradients(model) if not _finite(grad))
    first = next((flow for flow in watch.flows if not flow.finite), None)
    if first is None and not bad:
        return None
    if first is None:
        where = bad[-1].rpartition(".")[0]  # parameters are listed in the order of the way forward
    elif first.leaves:
        where = first.name
    else:  # what comes bad to a module was made by what it is part of, or by the loss
        where = first.name.rpartition(".")[0] or "output"
    whole = watch.mixer_of(where) or where
    left = [f.place for f in watch.flows if f.name == whole and f.leaves and not f.finite]
    place = next(iter(left), first.place if first else _Place())
    return Finding("backward", where, _layer(where), (), *place, parameters=bad)


def _in_norm(model: Model) -> Finding:
    if math.isfinite(_grad_norm(model)):
        return Finding("not reproduced")
    largest, _ = max(_gradients(model), key=lambda pair: float(pair[1].abs().max()))
    return Finding("norm", largest, _layer(largest))


def _gradients(model: Model) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


def _grad_norm(model: Model) -> float:
    return get_total_norm([grad for _, grad in _gradients(model)]).item()


def _bad_entries(layer: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Entries of a mixer's state that are not finite, with the rows in which they are not."""
    bad = {
        name: _indices(~torch.isfinite(v).reshape(len(v), -1).all(1)) for name, v in layer.items()
    }
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


def _listed(items: Sequence[object]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(str(item) for item in items[:_SHOWN]) + more
