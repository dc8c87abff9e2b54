"""Suggests a setting for a flag that does not exist."""

import difflib

from ys_llm.config.schema import Config
from ys_llm.config.strict_reader import field_helps

_SHORT_NAMES = {
    "lr": "train.learning_rate",
    "epochs": "train.max_steps",
    "steps": "train.max_steps",
    "layers": "model.n_layers",
}


def advice(flag: str) -> str:
    """ ". Did you mean --set NAME=VALUE?", or "" where no setting is like it."""
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    settings = [path for path in field_helps(Config) if "." in path]
    by_name = {path.rpartition(".")[2]: path for path in reversed(settings)}
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.8)
    setting = _SHORT_NAMES.get(name) or (by_name[near[0]] if near else "")
    return f". Did you mean --set {setting}=VALUE?" if setting else ""
