"""Settings of earlier versions and their current names, for the error and for `ys convert`; and
what earlier versions did before there was a setting for it.

A name is a dotted path; options of mixers are listed as `model.options.NAME`, whichever the mixer.
Earlier versions wrote them there; now they are written as `model.options.MIXER.NAME`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Renamed:
    """The new dotted name of a setting, and the new names of its values where they changed.

    `shown` replaces the name in messages, where the setting has also changed its form.
    """

    name: str
    values: Mapping[Any, Any] = field(default_factory=dict)
    shown: str = ""


RENAMED: Mapping[str, Renamed] = {
    "data.layout": Renamed("data.batching", {"windows": "shuffled", "streams": "contiguous"}),
    "model.wiring": Renamed("model.block", {"bare": "plain"}),
    "model.mixer": Renamed("model.layers", shown="model.layers, a list: [MIXER, ...]"),
    "model.options.local_every": Renamed("model.options.local_interval"),
    "model.options.entry": Renamed(
        "model.options.summary_scale", {"raw": "fixed", "soft": "learned"}
    ),
    "train.implementation": Renamed(
        "train.backend",
        {"compiled": "cpp", "windowed_onednn": "windowed"},
        shown="train.backend, by the name of the mixer: {MIXER: BACKEND}",
    ),
    "train.keep_every": Renamed("train.keep_checkpoint_every"),
    "train.rollback_rate": Renamed("train.rollback_lr_factor"),
    "train.begin_from": Renamed("train.init_from"),
}

# Where a file that ys wrote lacks a setting, it did this. Only what differs from the default.
BEFORE: Mapping[str, Any] = {"model.copy.gate": "separate"}


def fill_in(values: Any) -> None:
    """Add what a file that ys wrote lacks because there was no such setting then, in place."""
    for path, value in BEFORE.items():
        section, _, name = path.rpartition(".")
        inner = _inner(values, section)
        if inner and name not in inner:
            inner[name] = value


def take_renamed(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Remove every setting with an old name from nested `values`; yield its path and a message."""
    for path, value in list(_items(values, "")):
        known = RENAMED.get(_without_mixer(path))
        if known:
            _remove(values, path)
            new = _with_mixer(known.shown or known.name)
            yield path, f"{path} is now {new}{_and_its_value(known, value)}"
        elif _is_flat_option(path, value):
            _remove(values, path)
            yield path, f"{path} is now {_with_mixer(path)}"
        elif path == "train.backend" and not isinstance(value, Mapping | None):
            _remove(values, path)
            yield path, f"{path} is now by the name of the mixer: {{MIXER: {value}}}"


def _is_flat_option(path: str, value: Any) -> bool:
    """Whether this is an option that is not under a mixer's name."""
    *parents, _ = path.split(".")
    return parents == ["model", "options"] and not isinstance(value, Mapping | None)


def _with_mixer(path: str) -> str:
    return path.replace("model.options.", "model.options.MIXER.")


def _and_its_value(known: Renamed, value: Any) -> str:
    if isinstance(value, str) and value in known.values:
        return f", and {value} is now {known.values[value]}"
    return ""


def _items(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        yield path, value
        if isinstance(value, Mapping):
            yield from _items(value, f"{path}.")


def _without_mixer(path: str) -> str:
    """model.options.MIXER.x as model.options.x."""
    parts = path.split(".")
    return (
        ".".join(parts[:2] + parts[3:])
        if parts[:2] == ["model", "options"] and len(parts) == 4
        else path
    )


def _remove(values: dict[str, Any], path: str) -> Any:
    *parents, name = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    return inner.pop(name)


def is_earlier(values: Any) -> bool:
    """Whether a run's settings have names of an earlier version."""
    return isinstance(values, Mapping) and any(_holds(values, name) for name in RENAMED)


def updated(values: dict[str, Any]) -> dict[str, Any]:
    """All settings of an earlier run, changed in place to the names and forms of today."""
    for old, known in RENAMED.items():
        if _holds(values, old):
            value = _remove(values, old)
            section, _, name = known.name.rpartition(".")
            is_known = isinstance(value, str) and value in known.values
            _inner(values, section)[name] = known.values[value] if is_known else value
    mixer = _inner(values, "model.layers")
    if isinstance(mixer, str):  # once for all layers, now by the name of the mixer
        model, train = values["model"], values.setdefault("train", {})
        model["layers"] = [mixer]
        model["options"] = {mixer: model["options"]} if model.get("options") else {}
        if isinstance(train, dict):
            backend = train.get("backend", "auto")
            train["backend"] = {} if backend == "auto" else {mixer: backend}
    return values


def _inner(values: Mapping[str, Any], path: str) -> Any:
    """The mapping at a dotted path; {} where there is none."""
    inner: Any = values
    for name in path.split("."):
        inner = inner.get(name, {}) if isinstance(inner, Mapping) else {}
    return inner


def _holds(values: Mapping[str, Any], path: str) -> bool:
    section, _, name = path.rpartition(".")
    inner = _inner(values, section)
    return isinstance(inner, Mapping) and name in inner
