"""`ys export`: a run's model for transformers, as ONNX, or as a run of its own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ys_llm.cli.common import RUNS_DIR

EXAMPLES = """\
examples:
  ys export quickstart --to hf quickstart-hf       for AutoModelForCausalLM, trust_remote_code=True
  ys export quickstart --to onnx quickstart-onnx   step.onnx, prefill.onnx and their weights
  ys export chat --to run runs/chat-merged         an adapter merged into the weights of its base

A run with an adapter is exported with the adapter merged. Its own adapter_config.json and
adapter_model.safetensors are what peft reads, beside an export of its base.
"""


@dataclass(frozen=True)
class Arguments:
    """The arguments of `ys export`."""

    name: str
    folder: Path
    to: Literal["hf", "onnx", "run"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ys export`."""
    add = parser.add_argument
    add("name", metavar="RUN", help="name or folder of a run")
    to_help = "hf: for transformers; onnx: graphs; run: a run of its own"
    add("--to", choices=("hf", "onnx", "run"), required=True, help=to_help)
    add("folder", metavar="DIR", type=Path, help="a new folder, or an empty one")


def run(arguments: Arguments) -> int:
    """Export the run, and say what was written."""
    from ys_llm.runs.export import check_folder, export_run
    from ys_llm.runs.folder import find_run

    found = find_run(RUNS_DIR, arguments.name)
    check_folder(arguments.folder)
    if arguments.to == "run":
        from ys_llm.runs.merge import merge_run

        print(f"merged       {found} into {merge_run(found, arguments.folder)}")
        return 0
    if arguments.to == "onnx":
        from ys_llm.runs.export_onnx import import_onnx

        import_onnx()  # before anything takes time
    from ys_llm.runs.model_files import load_run
    from ys_llm.system.sizes import human_size

    done = export_run(load_run(found), arguments.to, arguments.folder)
    size = human_size(done.bytes)
    print(f"exported     {found} as {arguments.to}, {done.parameters:,} parameters, {size}")
    differ = f"differ by {done.difference:.1e} at most in float64"
    print(f"checked      log-probabilities of 101 tokens {differ}")
    print(f"folder       {done.folder}")
    return 0
