"""What several commands share: the flags of a configuration, and typed arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

if TYPE_CHECKING:
    from ys_llm.config.sources import Override, Resolved
    from ys_llm.runs.model_files import LoadedRun

RUNS_DIR = Path("runs")
Quantization = Literal["fp32", "bf16", "int8"]
Device = Literal["auto", "cpu", "cuda"]
T = TypeVar("T")


def typed(cls: type[T], namespace: argparse.Namespace) -> T:
    """The parsed arguments as a dataclass with a field for each of them."""
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: getattr(namespace, name) for name in names})


class Renamed(argparse.Action):
    """A flag of an earlier version: refused with its current name."""

    def __init__(self, option_strings: Sequence[str], dest: str, now: str) -> None:
        super().__init__(option_strings, dest, nargs="?", help=argparse.SUPPRESS)
        self._now = now

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Exit with 2 and the new name."""
        parser.error(f"{option_string} is now {self._now}")


@dataclass(frozen=True)
class ConfigArguments:
    """Where the settings of a run come from."""

    config: str | None = None
    data: str | None = None
    run: str | None = None
    set: list[str] = field(default_factory=list)

    def flags(self) -> dict[str, object]:
        """The same flags again, for a command to advise."""
        return {"config": self.config, "data": self.data, "run": self.run, "set": self.set}


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """--config, --data, --run and --set."""
    add = parser.add_argument
    add("--config", metavar="NAME_OR_FILE", help="a shipped configuration, or a YAML file")
    add("--data", metavar="PATH", help="text to train on: --set data.path=PATH")
    add("--run", metavar="NAME", help="name of the run: --set run=NAME")
    help_of_set = "one setting, its value written as YAML; may be repeated"
    add("--set", metavar="A.B=VALUE", action="append", default=[], help=help_of_set)


def add_quantize_flag(parser: argparse.ArgumentParser) -> None:
    """--quantize, and its former name."""
    parser.add_argument(
        "--quantize",
        choices=get_args(Quantization),
        default="fp32",
        help="quantise the weights of linear layers (default: fp32, as trained)",
    )
    parser.add_argument("--weights", action=Renamed, now="--quantize")


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """--device, where a trained model is used."""
    parser.add_argument(
        "--device",
        choices=get_args(Device),
        default="auto",
        help="auto = cuda where available; for one prompt at a time cpu may be faster",
    )


def override(name: str, value: object, *, flag: str) -> list[Override]:
    """A setting from a flag; none where the flag was not given."""
    from ys_llm.config.sources import Override
    from ys_llm.config.yaml_io import dump_inline

    return [] if value is None else [Override(name, dump_inline(value), flag)]


def overrides_of(arguments: ConfigArguments) -> list[str | Override]:
    """What the command line sets."""
    return [
        *arguments.set,
        *override("data.path", arguments.data, flag="--data"),
        *override("run", arguments.run, flag="--run"),
    ]


def resolve(arguments: ConfigArguments, more: Sequence[Override] = ()) -> Resolved:
    """The configuration: of --config, else of the run that exists, else the defaults.

    `more` is what a command's own flags set.
    """
    from ys_llm.config.shipped import find_config

    overrides = [*overrides_of(arguments), *more]
    if arguments.config is not None:
        resolved = load(find_config(arguments.config), overrides)
    else:
        resolved = load(None, overrides)
        saved = RUNS_DIR / resolved.config.run / "config.yaml"
        if saved.exists():
            resolved = load(saved, overrides, warn=False)
    return replace(resolved, flags={**arguments.flags(), "run": resolved.config.run})


def load(path: Path | None, overrides: list[str | Override], *, warn: bool = True) -> Resolved:
    """A file, the environment and the command line; warns of variables that are no settings."""
    from ys_llm.config.sources import load_config

    resolved = load_config(path, overrides=overrides, environment=os.environ)
    for warning in resolved.warnings if warn else ():
        print(f"ys: {warning}", file=sys.stderr)
    return resolved


def load_quantized(run: Path, quantization: Quantization, device: Device) -> LoadedRun:
    """A trained run on --device, ready to be used: kernels compiled, weights quantised."""
    from ys_llm.inference.decoder import decoder_of
    from ys_llm.model.device import resolve_device
    from ys_llm.model.quantize import quantize_linears
    from ys_llm.runs.model_files import load_run

    target = resolve_device(device, setting="--device", fix="Type --device cpu")
    if target.type == "cpu":
        compile_with_notice()
    loaded = load_run(run, device=target)
    if quantization != "fp32":
        quantize_linears(loaded.model, quantization)
        if decoder_of(loaded.model) is None:
            note = "saves memory, not time: the compiled decoder cannot be used here"
            print(f"ys: --quantize {quantization} {note}", file=sys.stderr)
    return loaded


def compile_with_notice() -> None:
    """Compile the C++ kernels if they are missing, with a notice: it takes a while, once.

    Where they cannot be had, one line says why and what to do; nothing where nothing can be done.
    """
    from ys_llm.csrc import loader

    found = loader.build_or_explain(announce=lambda line: print(f"ys: {line}", file=sys.stderr))
    if isinstance(found, loader.Unavailable) and found.fix:
        print(f"ys: torch alone, which is slower: {found}", file=sys.stderr)
