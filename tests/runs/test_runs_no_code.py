"""What no source of the project does at all, read with `ast`: run what a file holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from support.sources import ROOT, SOURCES, for_every, name_of

FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("code", "codeop", "runpy", "imp", "xmlrpc", "pty", "commands"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load"),
    *("yaml.unsafe_load_all", "torch.load", "torch.hub.load", "torch.jit.load", "np.load"),
    *("numpy.load", "os.system", "os.popen", "ctypes.cast"),
}
STARTS_PROCESSES = {"subprocess", "os.execv", "os.spawnv", "os.posix_spawn"}
CHECKED = [*SOURCES, *sorted((ROOT / "scripts").glob("*.py"))]
MAY_START = {
    "ys_llm/evaluation/compare.py": "`git describe`, with words of its own",
    "scripts/screenshots.py": "the server whose page it takes a picture of",
    "benchmarks/gpu.py": "itself, so that a kernel that never ends can be ended",
    "ys_llm/cli/main.py": "itself, in UTF-8 mode",
    "ys_llm/training/memory.py": "a child that takes two steps, to measure its memory",
    "ys_llm/csrc/loader.py": "the C++ compiler, on sources of this package",
    "ys_llm/gendata/verifiers/code.py": "tries generated code, which is its purpose, in a child",
}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(source: str, *, may_start: bool = False) -> set[str]:
    """What a source does that lets a file run code."""
    tree = ast.parse(source)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    modules = set(imported(tree))
    roots = {module.partition(".")[0] for module in modules}
    found = (roots & FORBIDDEN_MODULES) | ((calls | modules) & FORBIDDEN_CALLS)
    if not may_start:
        found |= (roots | calls | modules) & STARTS_PROCESSES
    unsafe = (node for node in ast.walk(tree) if isinstance(node, ast.keyword))
    return found | {word.arg for word in unsafe if word.arg in ("allow_pickle", "weights_only")}


@for_every(CHECKED)
def test_no_source_can_be_made_to_run_what_a_file_holds(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not breaches(source, may_start=name_of(path) in MAY_START)


def test_the_search_finds_what_it_looks_for() -> None:
    for source in (
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import yaml\nyaml.load(text, Loader=loader)",
        "np.load(path, allow_pickle=True)",
        "exec(text)",
        "import subprocess",
        "from os import system",
    ):
        assert breaches(source), source
    assert not breaches("model.eval()\nre.compile('x')\nsafetensors.torch.load(data)")


def test_only_mixers_and_commands_are_imported_by_name() -> None:
    """Both out of a fixed list: the files of a folder, and the commands there are."""
    importers = {
        path.relative_to(ROOT / "ys_llm").parts[0]
        for path in SOURCES
        if "import_module(" in path.read_text("utf-8")
    }
    assert importers <= {"cli", "model", "mixers"}
