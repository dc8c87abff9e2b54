"""Suggests what a command has instead of a flag that it lacks."""

import argparse
import difflib

from ys_llm.config.schema import Config
from ys_llm.config.strict_reader import field_helps

_NEAR = 0.8  # of difflib's similarity, above which a flag counts as a misspelt one
_SHORTEST = 3  # letters of which a longer or a shorter form of a flag is recognised
SHORT_NAMES = {
    "lr": "train.learning_rate",
    "epochs": "train.max_steps",
    "steps": "train.max_steps",
    "layers": "model.n_layers",
}


def advice(flag: str, parser: argparse.ArgumentParser) -> str:
    """ ". Did you mean --FLAG?", or "" where the command has neither a flag nor a setting like it.

    A setting is suggested as `--set NAME=VALUE`, to a command that takes --set alone.
    """
    name = flag.lstrip("-").partition("=")[0].replace("-", "_").lower()
    flags = flags_of(parser)
    found = _like(name, {flag.lstrip("-").replace("-", "_"): flag for flag in flags})
    if not found and "--set" in flags and (setting := _setting_like(name)):
        found = f"--set {setting}=VALUE"
    return f". Did you mean {found}?" if found else ""


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """The flags that a command takes and shows in its help."""
    shown = (a for a in parser._actions if a.help is not argparse.SUPPRESS)  # no public list
    return [flag for action in shown for flag in action.option_strings if flag.startswith("--")]


def _setting_like(name: str) -> str:
    paths = [path for path in field_helps(Config) if "." in path]
    by_name = {path.rpartition(".")[2]: path for path in reversed(paths)}
    return SHORT_NAMES.get(name) or _like(name.rpartition(".")[2], by_name)


def _like(name: str, choices: dict[str, str]) -> str:
    """The choice of this name, of a misspelt one, or the only one that begins alike; else ""."""
    near = difflib.get_close_matches(name, choices, n=1, cutoff=_NEAR)
    if near:
        return choices[near[0]]
    alike = [
        choice
        for key, choice in choices.items()
        if min(len(key), len(name)) >= _SHORTEST and (key.startswith(name) or name.startswith(key))
    ]
    return alike[0] if len(alike) == 1 else ""
