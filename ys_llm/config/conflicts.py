"""Settings that cannot be meant together: each is right alone, and one of them would do nothing.

They are compared as plain values under their dotted names, once every source has been read. Values
that are as by default are nobody's mistake, so a default never contradicts what was asked for.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_RATE, _FINAL_RATE = "train.learning_rate", "train.final_learning_rate"
_WARMUP, _STEPS, _STAGES = "train.warmup_steps", "train.max_steps", "train.stages"
_SCHEDULE, _COOLDOWN = "train.schedule", "train.cooldown_fraction"
_WITH_COOLDOWN = "constant_sqrt_cooldown"
_PATIENCE, _HELD_OUT = "train.patience", "data.validation_fraction"
_OF_STAGES = {_STEPS: "steps", "train.seq_len": "seq_len", "train.batch_size": "batch_size"}


def conflicts(
    values: Mapping[str, Any], *, defaults: Mapping[str, Any], origins: Mapping[str, str]
) -> list[str]:
    """One line for each pair that contradict each other, the place of the offending one first."""
    asked = {name: value for name, value in values.items() if value != defaults[name]}
    found = [
        *_rates(asked, values),
        *_warmup(asked, values, origins),
        *_cooldown(asked, values),
        *_patience(asked, values),
        *_stages(values, origins),
    ]
    return [f"{origins[name]}: {name} is {values[name]}{problem}" for name, problem in found]


def _rates(asked: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if _FINAL_RATE in asked and values[_FINAL_RATE] > values[_RATE]:
        yield (
            _FINAL_RATE,
            f", above the peak {_RATE}, {values[_RATE]}. "
            f"Type --set {_FINAL_RATE}={values[_RATE] / 10:g}, or raise the peak.",
        )


def _warmup(
    asked: Mapping[str, Any], values: Mapping[str, Any], origins: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Not where the steps were cut down from outside, as one does to try a file out."""
    total = sum(stage["steps"] for stage in values[_STAGES]) or values[_STEPS]
    steps = _STAGES if values[_STAGES] else _STEPS
    together = _same_file(origins[_WARMUP], origins[steps]) and _is_written_by_hand(origins)
    if asked.get(_WARMUP, 0) > total and together:
        yield (
            _WARMUP,
            f", and the run has {total} steps: it would never reach its learning rate. "
            f"Type --set {_WARMUP}={total // 10}, or give it more steps.",
        )


def _cooldown(asked: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if asked.get(_COOLDOWN, 0) > 0 and values[_SCHEDULE] != _WITH_COOLDOWN:
        yield (
            _COOLDOWN,
            f", and {_SCHEDULE}: {values[_SCHEDULE]} has no cool-down. "
            f"Take it out, or type --set {_SCHEDULE}={_WITH_COOLDOWN}.",
        )


def _patience(asked: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if _PATIENCE in asked and values[_HELD_OUT] == 0:
        yield (
            _PATIENCE,
            f", and with {_HELD_OUT}: 0 there is nothing to evaluate. "
            f"Type --set {_PATIENCE}=0, or hold some text out.",
        )


def _stages(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What stages replace, where it is said beside them or over them and differs from theirs."""
    stages = values[_STAGES]
    if not stages:
        return
    for name, part in _OF_STAGES.items():
        theirs = [stage[part] for stage in stages]
        right = [sum(theirs)] if part == "steps" else theirs
        if values[name] not in right and _is_meant(name, origins):
            yield (
                name,
                f", but {_STAGES} decide, with {part} {', '.join(map(str, right))}"
                f"{' in all' if part == 'steps' else ''}. "
                f"Take it out, or change the stages: --set '{_STAGES}=[...]'.",
            )


def _is_meant(name: str, origins: Mapping[str, str]) -> bool:
    """Whether somebody wrote this over or beside the stages.

    A file that gives every setting was written by `ys` from a finished configuration, and there
    the stages have replaced what stands beside them.
    """
    mine, theirs = _rank(origins[name]), _rank(origins[_STAGES])
    return mine > theirs or (mine == theirs == _rank("file") and _is_written_by_hand(origins))


def _is_written_by_hand(origins: Mapping[str, str]) -> bool:
    return any(origin == "default" for path, origin in origins.items() if path.startswith("train."))


def _same_file(one: str, other: str) -> bool:
    file = one.rpartition(":")[0]
    return file != "" and file == other.rpartition(":")[0]


def _rank(origin: str) -> int:
    """Later sources win: defaults, the file, the environment, --set."""
    if origin == "--set":
        return 3
    return {"default": 0}.get(origin, 2 if origin.upper().startswith("YS_") else 1)
