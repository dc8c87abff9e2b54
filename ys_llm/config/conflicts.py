"""Settings that contradict each other: each is valid alone, and one of them would have no effect.

They are compared as plain values under their dotted names, once every source has been read. A
default never conflicts with a value that was set.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ys_llm.config.sizes import AUTO, size_names

_RATE, _FINAL_RATE = "train.learning_rate", "train.final_learning_rate"
_WARMUP, _STEPS, _STAGES = "train.warmup_steps", "train.max_steps", "train.stages"
_MINUTES, _SIZE = "train.minutes", "model.size"
_SCHEDULE, _COOLDOWN = "train.schedule", "train.cooldown_fraction"
_WITH_COOLDOWN = "constant_sqrt_cooldown"
_PATIENCE, _HELD_OUT = "train.patience", "data.validation_fraction"
_REFERENCE, _SELECTED = "train.reference_run", "train.select_fraction"
_METHOD, _OBJECTIVE, _REPLAY = "sft.method", "sft.objective", "sft.replay"
_TEACHER = "train.teacher"
_OF_STAGES = {_STEPS: "steps", "train.seq_len": "seq_len", "train.batch_size": "batch_size"}


def conflicts(
    values: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    origins: Mapping[str, str],
    generated: bool,
) -> list[str]:
    """One line for each conflicting pair, the origin of the offending value first.

    `generated`: ys wrote the file from a finished configuration with every setting, so that no
    value in it was put next to another on purpose.
    """
    given = {name: value for name, value in values.items() if value != defaults[name]}
    found = [
        *_rates(given, values),
        *_budget(given, values, origins, generated=generated),
        *([] if generated else _warmup(given, values, origins)),
        *_cooldown(given, values),
        *_patience(given, values),
        *_selection(given),
        *_tuning(given, values),
        *_stages(values, origins, generated=generated),
        *_size(values),
    ]
    return [f"{origins[name]}: {name} is {values[name]}{problem}" for name, problem in found]


def _rates(given: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if _FINAL_RATE in given and values[_FINAL_RATE] > values[_RATE]:
        yield (
            _FINAL_RATE,
            f", above the peak {_RATE}, {values[_RATE]}. "
            f"Type --set {_FINAL_RATE}={values[_RATE] / 10:g}, or raise the peak.",
        )


def later_of_budgets(origins: Mapping[str, str]) -> str:
    """Which of minutes and max_steps, both given, comes from the later source; "" if neither."""
    minutes, steps = rank(origins[_MINUTES]), rank(origins[_STEPS])
    return "" if minutes == steps else _MINUTES if minutes > steps else _STEPS


def _budget(
    given: Mapping[str, Any],
    values: Mapping[str, Any],
    origins: Mapping[str, str],
    *,
    generated: bool,
) -> Iterator[tuple[str, str]]:
    """Minutes and steps side by side; from two sources, the later one has been chosen already.

    Not in a file that ys wrote: there the steps are what the minutes came to.
    """
    both = _MINUTES in given and origins[_STEPS] != "default"
    from_run = generated and is_from_file(origins[_MINUTES])
    if both and not from_run and not later_of_budgets(origins):
        yield (
            _MINUTES,
            f", and {_STEPS} is {values[_STEPS]}: the minutes come to a number of steps of their "
            f"own. Remove one of the two.",
        )


def _warmup(
    given: Mapping[str, Any], values: Mapping[str, Any], origins: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Not where the steps were reduced on the command line, to try a file out.

    Nor with minutes, whose steps are not known yet; the warm-up is fitted to them.
    """
    if values[_MINUTES] is not None:
        return
    total = sum(stage["steps"] for stage in values[_STAGES]) or values[_STEPS]
    steps = _STAGES if values[_STAGES] else _STEPS
    if given.get(_WARMUP, 0) > total and _same_file(origins[_WARMUP], origins[steps]):
        yield (
            _WARMUP,
            f", and the run has {total} steps: it would never reach its learning rate. "
            f"Type --set {_WARMUP}={total // 10}, or give it more steps.",
        )


def _cooldown(given: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if given.get(_COOLDOWN, 0) > 0 and values[_SCHEDULE] != _WITH_COOLDOWN:
        yield (
            _COOLDOWN,
            f", and {_SCHEDULE}: {values[_SCHEDULE]} has no cool-down. "
            f"Remove it, or type --set {_SCHEDULE}={_WITH_COOLDOWN}.",
        )


def _patience(given: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if _PATIENCE in given and values[_HELD_OUT] == 0:
        yield (
            _PATIENCE,
            f", and with {_HELD_OUT}: 0 there is nothing to evaluate. "
            f"Type --set {_PATIENCE}=0, or hold some text out.",
        )


def _selection(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if _SELECTED in given and _REFERENCE not in given:
        yield (
            _SELECTED,
            f", and there is no {_REFERENCE} to select tokens by. "
            f"Type --set {_REFERENCE}=RUN, or --set {_SELECTED}=1.",
        )
    if _REFERENCE in given and _SELECTED not in given:
        yield (
            _REFERENCE,
            f", and {_SELECTED} is 1: all tokens are trained without it. "
            f"Type --set {_SELECTED}=0.6, or remove it.",
        )


def _tuning(given: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings of fine-tuning without it, and those of one way of it with another."""
    tuned = values[_METHOD] != "none"
    for name in (name for name in given if name.startswith("sft.") and not tuned):
        yield (name, f", and {_METHOD} is none: nothing is fine-tuned. Type --set {_METHOD}=full.")
    apart = values[_METHOD] == "state" or values[_OBJECTIVE] == "preferences"
    if _REPLAY in given and tuned and apart:
        why = _METHOD if values[_METHOD] == "state" else _OBJECTIVE
        yield (
            _REPLAY,
            f", and with {why}: {values[why]} no text of the base can be mixed in. "
            f"Type --set {_REPLAY}=0.",
        )
    if _TEACHER not in given:
        return
    if tuned or _REFERENCE in given:
        other = _METHOD if tuned else _REFERENCE
        yield (
            _TEACHER,
            f", and {other} is {values[other]}: the two cannot be combined. Remove one of them.",
        )


def _stages(
    values: Mapping[str, Any], origins: Mapping[str, str], *, generated: bool
) -> Iterator[tuple[str, str]]:
    """Settings that stages replace, where they were set next to the stages or later."""
    stages = values[_STAGES]
    if not stages:
        return
    for name, part in _OF_STAGES.items():
        theirs = [stage[part] for stage in stages]
        right = [sum(theirs)] if part == "steps" else theirs
        if values[name] not in right and _is_set(name, origins, generated=generated):
            yield (
                name,
                f", but {_STAGES} decide, with {part} {', '.join(map(str, right))}"
                f"{' in total' if part == 'steps' else ''}. "
                f"Remove it, or change the stages: --set '{_STAGES}=[...]'.",
            )


def _is_set(name: str, origins: Mapping[str, str], *, generated: bool) -> bool:
    """Whether the setting is in the same file as the stages, by hand, or in a later source."""
    own, stages = rank(origins[name]), rank(origins[_STAGES])
    return own > stages or (own == stages and is_from_file(origins[name]) and not generated)


def _size(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values[_SIZE] == AUTO and values[_MINUTES] is None:
        yield (
            _SIZE,
            f", which depends on {_MINUTES}, and they are not given. "
            f"Type --minutes 30, or name a size: {', '.join(size_names())}.",
        )


def _same_file(one: str, other: str) -> bool:
    file = one.rpartition(":")[0]
    return file != "" and file == other.rpartition(":")[0]


def rank(origin: str) -> int:
    """Later sources win: defaults and sizes, the file, the environment, the command line."""
    if origin.startswith("--"):
        return 3
    if origin == "default" or origin.startswith("size "):
        return 0
    return 2 if origin.upper().startswith("YS_") else 1


def is_from_file(origin: str) -> bool:
    """Whether a value comes from the configuration's own file."""
    return rank(origin) == rank("file")
