"""The rules of the house, read from the source with `ast`.

README.md shows the layout in its first ```text block whose first line starts with `ys_llm/`: one
entry a line, two spaces of indentation a level, the name first, a folder's name ending in `/`, a
description after it. It shows every top-level folder and every folder of the package, but need not
show files, so that a new one, such as a mixer, edits no README. Whatever it shows exists.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest
import torch
from support.sources import ROOT, SOURCES, for_every, name_of

from ys_llm.config.schema import ModelConfig
from ys_llm.config.sources import load_config
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model

PACKAGE = ROOT / "ys_llm"
MIXERS = sorted(
    path.stem for path in (PACKAGE / "mixers").glob("[!_]*.py") if path.stem != "protocol"
)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

# An import goes only from right to left; two folders of one set do not know each other.
LINE = (
    {"errors"},
    {"system"},
    {"config"},
    {"data"},
    {"csrc"},
    {"ops"},
    {"mixers"},
    {"model"},
    {"runs"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"serving", "doctor"},
    {"cli"},
    {"__main__"},
)
GENDATA = {"errors", "system", "config", "data"}  # what it knows; only `cli` knows it
WITHOUT_TORCH = {"errors", "system", "config", "data", "gendata", "cli"}  # when they are imported
NEEDS_TORCH = {"data/batches.py", "data/padded.py"}
READS_ENVIRONMENT = {"system", "config", "cli"}  # system: what may be used of the machine

LONGEST_FUNCTION = 60
THE_LOOP = ("ys_llm/training/loop.py", "_loop")
MOST_PARAMETERS = 6
LONGEST_FILE = 400
HIGHEST_MEDIAN = 14  # lines; the house says "about 12"

# In pieces, so that this file does not hold what it forbids.
FORBIDDEN = {
    "a path of the machine it was written on": re.compile(r"/wo" r"rk/|/tm" r"p/"),
    "unfinished work": re.compile(r"\bTO" r"DO\b"),
}

MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter"}
MUTATORS = {"append", "extend", "insert", "remove", "pop", "popitem", "clear", "update", "add"}
MUTATORS |= {"setdefault", "discard"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name_of(path))


def folder_of(path: Path) -> str:
    """The folder, or the file, directly below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def functions_of(path: Path) -> Iterator[Function]:
    """All but Triton's kernels.

    Those are a language of their own: tensors come in as bare pointers, one parameter each, with
    sizes and constants; what its compiler takes has no Python types; and to share a body between
    kernels is to pass all of that on.
    """
    functions = (node for node in ast.walk(tree_of(path)) if isinstance(node, Function))
    return (function for function in functions if not is_triton_kernel(function))


def is_triton_kernel(function: Function) -> bool:
    return any(ast.unparse(d).startswith("triton.jit") for d in function.decorator_list)


def modules_imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides the folder"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(path: Path) -> ast.Module:
    """The module without the bodies of its functions: what `import` runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, Function) or is_for_type_checkers(node):
            node.body = [ast.Pass()]
    return tree


def is_for_type_checkers(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def rank_of(folder: str) -> int:
    ranks = [rank for rank, folders in enumerate(LINE) if folder in folders]
    assert len(ranks) == 1, f"ys_llm/{folder} has no place in the import line"
    return ranks[0]


def may_import(importer: str, folder: str) -> bool:
    if importer == folder:
        return importer != "mixers"
    if importer == "gendata":
        return folder in GENDATA
    if folder == "gendata":
        return importer == "cli"
    return rank_of(folder) < rank_of(importer)


@for_every(SOURCES)
def test_a_file_imports_only_from_its_left(path: Path) -> None:
    inside = [module.split(".") for module in modules_imported(tree_of(path))]
    folders = {parts[1] for parts in inside if parts[0] == "ys_llm" and len(parts) > 1}
    folders.discard("__version__")
    if folder_of(path) == "__init__":
        assert not folders, "ys_llm/__init__.py imports: every `import ys_llm` pays for it"
        return
    wrong = sorted(folder for folder in folders if not may_import(folder_of(path), folder))
    if folder_of(path) == "mixers":  # the protocol is theirs to share; they never know each other
        own = {parts[2] for parts in inside if parts[:2] == ["ys_llm", "mixers"] and parts[2:]}
        wrong = [folder for folder in wrong if folder != "mixers"] + sorted(own - {"protocol"})
    assert not wrong, f"{name_of(path)} may not import {', '.join(wrong)}"


def loads_torch(path: Path) -> bool:
    roots = {module.split(".")[0] for module in modules_imported(top_level(path))}
    return bool(roots & {"torch", "safetensors"})


@for_every(SOURCES)
def test_what_must_start_fast_never_imports_torch(path: Path) -> None:
    if folder_of(path) in WITHOUT_TORCH and path.relative_to(PACKAGE).as_posix() not in NEEDS_TORCH:
        assert not loads_torch(path), f"{name_of(path)} imports torch"


def test_torch_is_not_loaded_by_anything_the_fast_folders_import() -> None:
    fast = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in SOURCES
        if folder_of(path) in WITHOUT_TORCH
        and path.relative_to(PACKAGE).as_posix() not in NEEDS_TORCH
    ]
    lines = [f"import {module}" for module in sorted(fast)]
    code = "\n".join(["import sys", *lines, "assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@for_every(SOURCES)
def test_only_mixers_and_ops_name_a_mixer(path: Path) -> None:
    assert MIXERS, "there is no mixer"
    named_here = {"ys_llm/config/schema.py", "ys_llm/config/default_options.py"}  # the default
    if folder_of(path) in {"mixers", "ops"} or name_of(path) in named_here:
        return
    text = path.read_text(encoding="utf-8")
    named = [mixer for mixer in MIXERS if re.search(rf"\b{mixer}\b", text)]
    assert not named, f"{name_of(path)} names {', '.join(named)}"


def binds(node: ast.stmt) -> tuple[list[str], ast.expr | None]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)], node.value
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id], node.value
    return [], None


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        function = value.func
        called = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        return called in MUTABLE_CALLS
    literals = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    return isinstance(value, literals)


def is_item_written(node: ast.AST) -> TypeGuard[ast.Subscript]:
    return isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)


def mutations(tree: ast.AST) -> Iterator[str]:
    """Names whose items are set or deleted, or whose mutating methods are called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif is_item_written(node) or (isinstance(node, ast.Attribute) and node.attr in MUTATORS):
            yield ast.unparse(node.value)


@for_every(SOURCES)
def test_no_module_keeps_mutable_state(path: Path) -> None:
    bindings = [binds(node) for node in tree_of(path).body]
    containers = {name for names, value in bindings if is_mutable(value) for name in names}
    variables = sorted(name for name in containers if not name.isupper() and name != "__all__")
    assert not variables, f"{name_of(path)} binds containers as variables: {variables}"
    constants = {name for names, _ in bindings for name in names}
    mutated = sorted(constants & set(mutations(tree_of(path))))
    assert not mutated, f"{name_of(path)} changes module-level {mutated}"


@for_every(SOURCES)
def test_the_environment_is_read_in_system_config_and_cli_alone(path: Path) -> None:
    attributes = {ast.unparse(node) for node in ast.walk(tree_of(path)) if is_name(node)}
    reads = attributes & {"os.environ", "os.getenv", "os.environb", "environ", "getenv"}
    assert not reads or folder_of(path) in READS_ENVIRONMENT, f"{name_of(path)} reads {reads}"


def is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute | ast.Name)


def length_of(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


@for_every(SOURCES)
def test_functions_are_short(path: Path) -> None:
    long = {f.name: length_of(f) for f in functions_of(path) if length_of(f) > LONGEST_FUNCTION}
    if name_of(path) == THE_LOOP[0]:
        long.pop(THE_LOOP[1], None)
    assert not long, f"{name_of(path)}: over {LONGEST_FUNCTION} lines: {long}"


def test_the_median_function_is_about_a_dozen_lines() -> None:
    lengths = [length_of(function) for path in SOURCES for function in functions_of(path)]
    assert statistics.median(lengths) <= HIGHEST_MEDIAN


def parameters_of(function: Function) -> list[ast.arg]:
    own = function.args
    every = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
    return [argument for argument in every if argument and argument.arg not in ("self", "cls")]


def autograd_methods(path: Path) -> set[Function]:
    """`forward` and `backward` of autograd Functions: torch fixes how they are called."""
    classes = (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef))
    return {
        node
        for kind in classes
        if any(ast.unparse(base).endswith("Function") for base in kind.bases)
        for node in kind.body
        if isinstance(node, Function)
    }


def calls_c(function: Function) -> bool:
    """Whether a function passes its arguments on to a compiled library, one for one."""
    return ast.get_docstring(function) is not None and "C call" in str(ast.get_docstring(function))


@for_every(SOURCES)
def test_functions_take_at_most_six_parameters(path: Path) -> None:
    """Autograd Functions, and functions whose docstring says that they are a `C call`, may more."""
    excused = autograd_methods(path)
    counts = {
        function.name: len(parameters_of(function))
        for function in functions_of(path)
        if function not in excused and not calls_c(function)
    }
    greedy = {name: count for name, count in counts.items() if count > MOST_PARAMETERS}
    assert not greedy, f"{name_of(path)}: over {MOST_PARAMETERS} parameters: {greedy}"


@for_every(SOURCES)
def test_everything_is_annotated(path: Path) -> None:
    bare = [
        f"{function.name}, line {function.lineno}"
        for function in functions_of(path)
        if function.returns is None or any(not a.annotation for a in parameters_of(function))
    ]
    assert not bare, f"{name_of(path)}: without annotation: {bare}"


@for_every(SOURCES)
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{name_of(path)} has {lines} lines: it is two files"


def public_things(tree: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_things(node)


@for_every(SOURCES)
def test_public_things_have_docstrings(path: Path) -> None:
    tree = tree_of(path)
    silent = [node.name for node in public_things(tree) if not ast.get_docstring(node)]
    assert not silent, f"{name_of(path)}: no docstring: {silent}"
    assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} does not say what it is"


@cache
def project_files() -> list[Path]:
    """Every file of the project that git does not ignore; without git, all but made ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        made = {"runs", "build", "dist", "__pycache__"}
        paths = [path for path in ROOT.rglob("*") if not made & set(path.parts)]
        hidden = [path for path in paths if any(part[0] == "." for part in path_parts(path))]
        return sorted(path for path in set(paths) - set(hidden) if path.is_file())
    return sorted(ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file())


def path_parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).parts


def test_no_file_holds_forbidden_words() -> None:
    found = []
    for path in project_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        for meaning, pattern in FORBIDDEN.items():
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name_of(path)}:{line}: {meaning}: {match.group()}")
    assert not found, "\n".join(found)


def tree_shown(readme: str) -> dict[str, set[str]]:
    """Folder -> names listed below it; "" is the root. Folders without entries are left out."""
    blocks = re.findall(r"^```text\n(ys_llm/.*?)^```", readme, flags=re.M | re.S)
    assert blocks, "README.md shows no file tree: a ```text block that starts with ys_llm/"
    shown: dict[str, set[str]] = {}
    folders: list[str] = []
    for line in filter(str.strip, blocks[0].splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        if depth > len(folders):
            continue  # a description that goes on in the next line
        entry = line.split()[0]
        folders = folders[:depth]
        shown.setdefault("".join(folders), set()).add(entry)
        if entry.endswith("/"):
            folders.append(entry)
    return shown


def tree_on_disk(folder: str) -> set[str]:
    rests = [name_of(path).removeprefix(folder) for path in project_files() if below(path, folder)]
    names = {rest.split("/")[0] + ("/" if "/" in rest else "") for rest in rests}
    return {name for name in names if name[0] != "." and not name.startswith("__")}


def below(path: Path, folder: str) -> bool:
    return name_of(path).startswith(folder)


def folders_on_disk(folder: str) -> set[str]:
    return {name for name in tree_on_disk(folder) if name.endswith("/")}


def test_the_readme_shows_every_top_level_folder_and_every_folder_of_the_package() -> None:
    shown = tree_shown((ROOT / "README.md").read_text(encoding="utf-8"))
    for folder in ("", "ys_llm/"):
        missing = folders_on_disk(folder) - shown[folder]
        assert not missing, f"README.md does not show {missing}"
    gone = [folder + name for folder in shown for name in shown[folder] - tree_on_disk(folder)]
    assert not gone, f"README.md shows what does not exist: {gone}"


def test_a_tree_in_a_readme_is_read_level_by_level() -> None:
    readme = (
        "```text\nys_llm/   the package\n  ops/   kernels\n    a.py  one\n  b.py\nLICENSE\n```\n"
    )
    shown = tree_shown(readme)
    assert shown == {
        "": {"ys_llm/", "LICENSE"},
        "ys_llm/": {"ops/", "b.py"},
        "ys_llm/ops/": {"a.py"},
    }


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_config_file_builds_its_model(path: Path) -> None:
    config = load_config(path).config
    with torch.device("meta"):
        model = Model(config.model, vocab_size=config.tokenizer.vocab_size)
    assert model.vocab_size == config.tokenizer.vocab_size


def test_there_are_config_files() -> None:
    assert CONFIGS


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "lru",
        "min_gru",
        "min_lstm",
        "gated_delta",
        "mamba2",
        "mamba3",
        "decay_attention",
        "kernel_attention",
        "mlstm",
        "rwkv7",
        "hybrid",
        "yoco",
    ],
)
def test_a_baseline_is_as_large_as_the_default_stack(name: str) -> None:
    baseline = load_config(ROOT / "configs" / f"{name}.yaml").config
    with torch.device("meta"):
        models = [
            Model(config, vocab_size=baseline.tokenizer.vocab_size)
            for config in (baseline.model, ModelConfig())
        ]
    ours, default = map(parameter_count, models)
    assert ours == pytest.approx(default, rel=0.02)
